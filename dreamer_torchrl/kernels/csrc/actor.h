/* Perceptrons and the actor: from features to a drawn action, as modules/actor.py says. */

typedef struct {
    MATRIX weight;
    const REAL *bias, *scale;
} NAME(layer);

typedef struct {
    const actor_weights *w;
    NAME(layer) layer[MOST_LAYERS];
    MATRIX head[MOST_HEADS];
    int widest, parameters;
} NAME(actor);

/* A matrix that will meet many rows is packed, one that meets few is read where it is. */
static MATRIX NAME(matrix_of)(arena *memory, source from, int packed) {
    return packed ? NAME(pack)(memory, from, 0) : NAME(unpacked)(from);
}

static NAME(layer) NAME(layer_of)(arena *memory, const layer_weights *w, int packed) {
    return (NAME(layer)){NAME(matrix_of)(memory, w->weight, packed), w->bias, w->scale};
}

static NAME(actor) NAME(actor_of)(arena *memory, const actor_weights *w, int packed) {
    NAME(actor) actor = {.w = w};
    for (long i = 0; i < w->layers; i++) {
        actor.layer[i] = NAME(layer_of)(memory, &w->layer[i], packed);
        if (actor.layer[i].weight.out > actor.widest) actor.widest = actor.layer[i].weight.out;
    }
    for (long i = 0; i < w->heads; i++) {
        actor.head[i] = NAME(matrix_of)(memory, w->head[i], packed);
        actor.parameters += actor.head[i].out;
    }
    return actor;
}

/* Layer after layer, in turn in the two places; returns where the last one is. */
static ROWS NAME(perceptron)(int n, const NAME(layer) * layers, long count, ROWS x, ROWS here, ROWS there) {
    for (long i = 0; i < count; i++) {
        const ROWS to = i % 2 ? there : here;
        NAME(multiply)(n, x, &layers[i].weight, to, layers[i].bias, 0);
        NAME(norm_silu)(n, layers[i].weight.out, to, layers[i].scale, to);
        x = to;
    }
    return x;
}

/* One row's action from the actor's parameters: what ActionDistribution draws. `probs` is scratch memory for one part's. */
static void NAME(draw)(const actor_weights *w, const REAL *parameters, const REAL *noise, REAL *probs, REAL *action) {
    for (long part = 0; part < w->parts; part++) {
        const long count = w->part_count[part], classes = w->part_classes[part];
        if (classes) {
            NAME(softmax)(count, classes, parameters, probs);
            NAME(choose)(count, classes, probs, w->unimix, noise, action);
            parameters += count * classes, action += count * classes;
        } else {
            const REAL range = w->largest_deviation - w->smallest_deviation;
            for (long j = 0; j < count; j += LANES) {
                const int left = count - j;
                const VECTOR mean = NAME(hyperbolic_tangent)(NAME(load)(parameters + j, left));
                const VECTOR raw = NAME(load)(parameters + count + j, left);
                const VECTOR deviation = range * NAME(sigmoid)(raw + 2) + (REAL)w->smallest_deviation;
                NAME(store)(action + j, mean + deviation * NAME(load)(noise + j, left), left);
            }
            parameters += 2 * count, action += count;
        }
        noise += count;
    }
}

/* Scratch memory of the actor for n rows. */
typedef struct {
    ROWS here, there, parameters;
    REAL *probs;
} NAME(actor_room);

static NAME(actor_room) NAME(room_for_actor)(arena *memory, int n, const NAME(actor) * actor) {
    return (NAME(actor_room)){
        NAME(room)(memory, n, actor->widest), NAME(room)(memory, n, actor->widest),
        NAME(room)(memory, n, actor->parameters), take(memory, actor->parameters * sizeof(REAL)),
    };
}

static void NAME(act_on)(
    int n, const NAME(actor) * actor, const NAME(actor_room) * room, ROWS features, ROWS noise, ROWS action) {
    const ROWS hidden = NAME(perceptron)(n, actor->layer, actor->w->layers, features, room->here, room->there);
    long first = 0;
    for (long i = 0; i < actor->w->heads; first += actor->head[i++].out)
        NAME(multiply)(n, hidden, &actor->head[i], NAME(columns)(room->parameters, first), actor->w->head_bias[i], 0);
    for (int r = 0; r < n; r++)
        NAME(draw)(actor->w, room->parameters.at + r * room->parameters.stride, noise.at + r * noise.stride, room->probs,
                   action.at + r * action.stride);
}

/* a / max(1, |a|) */
static void NAME(bound)(int n, int width, ROWS from, ROWS to) {
    for (int r = 0; r < n; r++)
        for (int j = 0; j < width; j++) {
            const REAL value = from.at[r * from.stride + j], size = value < 0 ? -value : value;
            to.at[r * to.stride + j] = size > 1 ? value / size : value;
        }
}

static void NAME(sample_state)(const sizes *size, double unimix, int n, ROWS logits, ROWS noise, REAL *probs, ROWS state) {
    for (int r = 0; r < n; r++) {
        NAME(softmax)(size->variables, size->classes, logits.at + r * logits.stride, probs);
        NAME(choose)(size->variables, size->classes, probs, unimix, noise.at + r * noise.stride,
                     state.at + r * state.stride);
    }
}
