/* One step of acting: what `RSSM.act` says, states and actions drawn. Rows are few, so that every matrix
 * is read where it is. */

static void NAME(act_tile)(const void *given, long row, int n, arena *memory) {
    const act_arguments *a = given;
    const int d = a->size.belief, s = a->size.variables * a->size.classes, h = a->size.hidden, actions = a->actor.action;
    const NAME(core) core = NAME(unpacked_core)(&a->size, &a->core);
    const NAME(actor) actor = NAME(actor_of)(memory, &a->actor, 0);
    const NAME(layer) action_in = NAME(layer_of)(memory, &a->action_in, 0);
    const NAME(layer) posterior = NAME(layer_of)(memory, &a->posterior, 0);
    const MATRIX mix_action = NAME(unpacked)(a->mix_action), posterior_logits = NAME(unpacked)(a->posterior_logits);
    const NAME(trace) trace = NAME(trace_room)(memory, n, &a->size);
    const NAME(actor_room) actor_room = NAME(room_for_actor)(memory, n, &actor);
    const ROWS belief = NAME(room)(memory, n, d), state = NAME(room)(memory, n, s);
    const ROWS previous = NAME(room)(memory, n, actions), hidden = NAME(room)(memory, n, h);
    const ROWS seen = NAME(room)(memory, n, d + a->encoded_size), logits = NAME(room)(memory, n, s);
    const ROWS features = NAME(room)(memory, n, d + s);
    REAL *probs = take(memory, s * sizeof(REAL));

    const ROWS kept = NAME(step_of)(a->kept, row, 1, 0, 1);
    NAME(masked)(n, d, NAME(step_of)(a->belief, row, 1, 0, d), kept, belief);
    NAME(masked)(n, s, NAME(step_of)(a->state, row, 1, 0, s), kept, state);
    NAME(masked)(n, actions, NAME(step_of)(a->previous_action, row, 1, 0, actions), kept, previous);
    NAME(bound)(n, actions, previous, previous);
    NAME(perceptron)(n, &action_in, 1, previous, hidden, hidden);
    NAME(multiply)(n, hidden, &mix_action, trace.mixed, a->mix_bias, 0);
    NAME(next_belief)(&core, n, belief, state, &trace, seen);
    NAME(copy)(n, a->encoded_size, NAME(step_of)(a->encoded, row, 1, 0, a->encoded_size), NAME(columns)(seen, d));
    NAME(perceptron)(n, &posterior, 1, seen, hidden, hidden);
    NAME(multiply)(n, hidden, &posterior_logits, logits, a->posterior_logits_bias, 0);
    NAME(copy)(n, d, seen, features);
    NAME(sample_state)(&a->size, a->unimix, n, logits, NAME(step_of)(a->noise, row, 1, 0, a->size.variables), probs,
                       NAME(columns)(features, d));
    NAME(act_on)(n, &actor, &actor_room, features, NAME(step_of)(a->action_noise, row, 1, 0, a->actor.noise),
                 NAME(step_of)(a->action, row, 1, 0, actions));
    NAME(copy)(n, d, features, NAME(step_of)(a->next_belief, row, 1, 0, d));
    NAME(copy)(n, s, NAME(columns)(features, d), NAME(step_of)(a->next_state, row, 1, 0, s));
}

int NAME(act)(const act_arguments *a) { return share_tiles(NAME(act_tile), a, a->rows, 16, a->threads); }
