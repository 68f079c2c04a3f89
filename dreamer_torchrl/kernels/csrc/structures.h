/* The kernels and their arguments, which structures.py reads too. Every field takes 8 bytes, so that none is padded. */

#define MOST_LAYERS 8   /* of a network */
#define MOST_HEADS 32   /* of an actor: up to two for each part of an action */
#define MOST_THREADS 64 /* beside the caller's */

/* A matrix somewhere in a tensor: element (k, j) of a block lies at k * stride_in + j * stride_out.
 * If shared, all blocks multiply the same x, instead of each its own chunk of it. */
typedef struct { real *at; long blocks, in, out, stride_block, stride_in, stride_out, shared; } Source;

typedef struct { long belief, hidden, variables, classes, blocks; } Sizes;

/* A linear layer; where it has a scale, norm and silu follow. */
typedef struct { Source weight; real *bias, *scale; } LayerWeights;

/* Of the belief's recurrence. */
typedef struct {
    LayerWeights belief_in, state_in;
    Source mix_own, mix_recurrent, gates;
    real *mix_scale, *gates_bias;
} CoreWeights;

typedef struct { long count; LayerWeights layer[MOST_LAYERS]; } NetworkWeights;

/* An actor and what it draws: parts of so many numbers, or of so many variables of so many classes. */
typedef struct {
    long heads, parts, action, noise;
    double unimix, smallest_deviation, largest_deviation;
    NetworkWeights network;
    LayerWeights head[MOST_HEADS];
    long part_count[MOST_HEADS], part_classes[MOST_HEADS];
} ActorWeights;

/* After the outputs what the backward pass needs, then the gradients. d_belief, d_state and d_scales come in as zeros,
 * d_logits with what flows into them from outside. */
typedef struct {
    Sizes size;
    long batch, time, threads;
    double unimix;
    CoreWeights core;
    Source posterior_own, posterior_logits;
    real *posterior_scale, *posterior_logits_bias, *kept, *action_share, *encoded_share, *noise, *belief, *state;
    real *beliefs, *states, *logits;
    real *inner, *recurrent, *mixed, *hidden, *gates, *posterior_inner, *posterior_hidden, *probs;
    real *d_beliefs, *d_states, *d_logits, *d_inner, *d_mixed, *d_gates, *d_posterior_inner;
    real *d_belief, *d_state, *d_scales;
} ObserveArguments;
int observe(const ObserveArguments *a);
int observe_backward(const ObserveArguments *a);

typedef struct {
    Sizes size;
    long rows, time, threads;
    double unimix;
    CoreWeights core;
    ActorWeights actor;
    NetworkWeights action_in, prior;
    LayerWeights mix_action, prior_logits;
    real *noise, *action_noise, *features, *actions;
} ImagineArguments;
int imagine(const ImagineArguments *a);

typedef struct {
    Sizes size;
    long rows, threads, encoded_size;
    double unimix;
    CoreWeights core;
    ActorWeights actor;
    NetworkWeights action_in, posterior;
    LayerWeights mix_action, posterior_logits;
    real *encoded, *previous_action, *kept, *belief, *state, *noise, *action_noise, *next_belief, *next_state, *action;
} ActArguments;
int act(const ActArguments *a);

/* d_scales, [tiles, width], comes in as zeros. */
typedef struct { long rows, width, threads, tile; real *x, *scale, *y, *d_y, *d_x, *d_scales; } NormArguments;
int norm_silu_rows(const NormArguments *a);
int norm_silu_backward_rows(const NormArguments *a);

/* If `before` is given, there is one layer, and that is where what comes before its norm goes. */
typedef struct { long rows, threads; NetworkWeights network; real *x, *before, *y; } LayersArguments;
int layers_rows(const LayersArguments *a);

typedef struct {
    long rows, count, targets, threads;
    real *logits, *bins, *target;
    double *weights;
    real *mean, *loss, *d_loss, *d_logits;
} TwoHotArguments;
int two_hot_mean(const TwoHotArguments *a);
int two_hot_loss(const TwoHotArguments *a);
int two_hot_backward(const TwoHotArguments *a);

typedef struct { real *param, *mu, *nu; float *step; real *grad; long count; } LapropTensor;

typedef struct {
    long tensors, threads;
    LapropTensor *all;
    double lr, beta1, beta2, eps, clip, clip_floor, warmup;
} LapropArguments;
int laprop(const LapropArguments *a);
