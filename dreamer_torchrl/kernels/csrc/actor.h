/* Perceptrons and the actor: from features to a drawn action, as modules/actor.py says. */

typedef struct { Matrix weight; const real *bias, *scale; } Layer;

typedef struct { Layer layer[MOST_LAYERS]; int count, widest; } Network;

/* A matrix that will meet many rows is packed, one that meets few is read where it is. */
static Layer layer_of(Arena *memory, const LayerWeights *w, int packed) {
    return (Layer){packed ? pack(memory, w->weight, 0) : unpacked(w->weight), w->bias, w->scale};
}

static Network network_of(Arena *memory, const NetworkWeights *w, int packed) {
    Network network = {.count = w->count};
    for (long i = 0; i < w->count; i++) {
        network.layer[i] = layer_of(memory, &w->layer[i], packed);
        if (network.layer[i].weight.out > network.widest) network.widest = network.layer[i].weight.out;
    }
    return network;
}

static void linear(int n, Rows x, const Layer *layer, Rows y) { multiply(n, x, &layer->weight, y, layer->bias, 0); }

/* Layer after layer, in turn in the two places; returns where the last one is. */
static Rows perceptron(int n, const Network *network, Rows x, Rows here, Rows there) {
    for (int i = 0; i < network->count; i++) {
        const Layer *layer = &network->layer[i];
        const Rows to = i % 2 ? there : here;
        linear(n, x, layer, to);
        norm_silu(n, layer->weight.out, to, layer->scale, to);
        x = to;
    }
    return x;
}

typedef struct { const LayersArguments *a; Network network; } LayersJob;

static void layers_tile(const void *given, long row, int n, Arena *memory) {
    const LayersJob *job = given;
    const Network *network = &job->network;
    const Layer *first = network->layer;
    const int in = first->weight.in, out = network->layer[network->count - 1].weight.out;
    const Rows x = rows_of(job->a->x, row, in), y = rows_of(job->a->y, row, out);
    if (job->a->before) {
        const Rows before = rows_of(job->a->before, row, out);
        linear(n, x, first, before);
        if (first->scale) norm_silu(n, out, before, first->scale, y);
    } else {
        const Rows here = room(memory, n, network->widest), there = room(memory, n, network->widest);
        copy(n, out, perceptron(n, network, x, here, there), y);
    }
}

int layers_rows(const LayersArguments *a) {
    OPEN(memory)
    LayersJob job = {a, network_of(&memory, &a->network, a->rows > 16)};
    const int failed = share(layers_tile, &job, a->rows, 32, 48, a->threads);
    release(&memory);
    return failed;
}

typedef struct {
    const ActorWeights *w;
    Network network;
    Layer head[MOST_HEADS];
    int parameters;
    Rows here, there, drawn_from; /* scratch memory of a tile */
    real *probs;
} Actor;

static Actor actor_of(Arena *memory, const ActorWeights *w, int packed) {
    Actor actor = {.w = w, .network = network_of(memory, &w->network, packed)};
    for (long i = 0; i < w->heads; i++) {
        actor.head[i] = layer_of(memory, &w->head[i], packed);
        actor.parameters += actor.head[i].weight.out;
    }
    return actor;
}

static void make_room(Arena *memory, int n, Actor *actor) {
    actor->here = room(memory, n, actor->network.widest), actor->there = room(memory, n, actor->network.widest);
    actor->drawn_from = room(memory, n, actor->parameters);
    actor->probs = take(memory, actor->parameters * sizeof(real));
}

/* One row's action from the actor's parameters: what ActionDistribution draws. `probs` is scratch memory for one part's. */
static void draw(const ActorWeights *w, const real *parameters, const real *noise, real *probs, real *action) {
    for (long part = 0; part < w->parts; part++) {
        const long count = w->part_count[part], classes = w->part_classes[part];
        if (classes) {
            softmax(count, classes, parameters, probs);
            choose(count, classes, probs, w->unimix, noise, action);
            parameters += count * classes, action += count * classes;
        } else {
            const real range = w->largest_deviation - w->smallest_deviation;
            for (long j = 0; j < count; j += LANES) {
                const int left = count - j;
                const Vector mean = hyperbolic_tangent(load(parameters + j, left));
                const Vector raw = load(parameters + count + j, left);
                const Vector deviation = range * sigmoid(raw + 2) + (real)w->smallest_deviation;
                store(action + j, mean + deviation * load(noise + j, left), left);
            }
            parameters += 2 * count, action += count;
        }
        noise += count;
    }
}

static void act_on(int n, const Actor *actor, Rows features, Rows noise, Rows action) {
    const Rows hidden = perceptron(n, &actor->network, features, actor->here, actor->there);
    long first = 0;
    for (long i = 0; i < actor->w->heads; first += actor->head[i++].weight.out)
        linear(n, hidden, &actor->head[i], columns(actor->drawn_from, first));
    for (int r = 0; r < n; r++)
        draw(actor->w, row_of(actor->drawn_from, r), row_of(noise, r), actor->probs, row_of(action, r));
}

/* a / max(1, |a|) */
static void bound(int n, int width, Rows from, Rows to) {
    for (int r = 0; r < n; r++)
        for (int j = 0; j < width; j++) {
            const real value = row_of(from, r)[j], size = value < 0 ? -value : value;
            row_of(to, r)[j] = size > 1 ? value / size : value;
        }
}
