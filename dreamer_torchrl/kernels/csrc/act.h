/* One step of acting: what `RSSM.act` says. Rows are few, so that every matrix is read where it is. */

static void act_tile(const void *given, long row, int n, Arena *memory) {
    const ActArguments *a = given;
    const int d = a->size.belief, s = a->size.variables * a->size.classes, h = a->size.hidden, actions = a->actor.action;
    const Core core = unpacked_core(&a->size, &a->core);
    const Network action_in = network_of(memory, &a->action_in, 0), posterior = network_of(memory, &a->posterior, 0);
    const Layer mix_action = layer_of(memory, &a->mix_action, 0);
    const Layer posterior_logits = layer_of(memory, &a->posterior_logits, 0);
    const Trace trace = trace_room(memory, n, &a->size);
    Actor actor = actor_of(memory, &a->actor, 0);
    make_room(memory, n, &actor);
    const Rows belief = room(memory, n, d), state = room(memory, n, s), previous = room(memory, n, actions);
    const Rows hidden = room(memory, n, h), seen = room(memory, n, d + a->encoded_size), logits = room(memory, n, s);
    const Rows features = room(memory, n, d + s), probs = {take(memory, s * sizeof(real)), 0};

    const Rows kept = rows_of(a->kept, row, 1);
    masked(n, d, rows_of(a->belief, row, d), kept, belief);
    masked(n, s, rows_of(a->state, row, s), kept, state);
    masked(n, actions, rows_of(a->previous_action, row, actions), kept, previous);
    bound(n, actions, previous, previous);
    perceptron(n, &action_in, previous, hidden, hidden);
    linear(n, hidden, &mix_action, trace.mixed);
    next_belief(&core, n, belief, state, &trace, seen);
    copy(n, a->encoded_size, rows_of(a->encoded, row, a->encoded_size), columns(seen, d));
    perceptron(n, &posterior, seen, hidden, hidden);
    linear(n, hidden, &posterior_logits, logits);
    copy(n, d, seen, features);
    sample_state(&a->size, a->unimix, n, logits, rows_of(a->noise, row, a->size.variables), probs, columns(features, d));
    act_on(n, &actor, features, rows_of(a->action_noise, row, a->actor.noise), rows_of(a->action, row, actions));
    copy(n, d, features, rows_of(a->next_belief, row, d));
    copy(n, s, columns(features, d), rows_of(a->next_state, row, s));
}

int act(const ActArguments *a) { return share_tiles(act_tile, a, a->rows, 16, a->threads); }
