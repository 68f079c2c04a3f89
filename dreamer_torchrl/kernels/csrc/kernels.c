/* The loops of modules/sequence.py in C: plain vectors of the compiler, no library, threads of its own.
 *
 * Python fills the structures below with addresses of tensors (native/structures.py has the same fields in the same order).
 */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

/* A matrix somewhere in a tensor, block by block: element (k, j) of [in, out] lies at k * stride_in + j * stride_out. */
typedef struct {
    const void *at;
    long blocks, in, out, stride_block, stride_in, stride_out;
    long shared; /* whether each block multiplies the same x, instead of its own share of it */
} source;

typedef struct {
    long belief, hidden, variables, classes, blocks;
} sizes;

typedef struct {
    source belief_in, state_in, mix_own, mix_recurrent, gates;
    const void *belief_bias, *belief_scale, *state_bias, *state_scale, *mix_scale, *gates_bias;
} core_weights;

typedef struct {
    void *inner, *recurrent, *mixed, *hidden, *gates;
} trace_tensors;

typedef struct {
    sizes size;
    long batch, time, threads;
    double unimix;
    core_weights core;
    source posterior_own, posterior_logits;
    const void *posterior_scale, *posterior_logits_bias;
    const void *kept, *action_share, *encoded_share, *noise, *belief, *state;
    void *beliefs, *states, *logits;
    trace_tensors trace;
    void *posterior_inner, *posterior_hidden, *probs;
    const void *d_beliefs, *d_states;
    void *d_logits;
    trace_tensors d_trace;
    void *d_posterior_inner, *d_belief, *d_state, *d_scales;
} observe_arguments;

typedef struct {
    source weight;
    const void *bias, *scale;
} layer_weights;

#define MOST_LAYERS 8
#define MOST_HEADS 32

/* The actor's network, and what it draws: parts of so many numbers, or of so many variables of so many classes. */
typedef struct {
    long layers, heads, parts, action, noise;
    double unimix, smallest_deviation, largest_deviation;
    layer_weights layer[MOST_LAYERS];
    source head[MOST_HEADS];
    const void *head_bias[MOST_HEADS];
    long part_count[MOST_HEADS], part_classes[MOST_HEADS];
} actor_weights;

typedef struct {
    sizes size;
    long rows, time, threads, prior_layers;
    double unimix;
    core_weights core;
    actor_weights actor;
    layer_weights action_in, prior[MOST_LAYERS];
    source mix_action, prior_logits;
    const void *mix_bias, *prior_logits_bias;
    const void *noise, *action_noise;
    void *features, *actions;
} imagine_arguments;

typedef struct {
    sizes size;
    long rows, threads, encoded_size;
    double unimix;
    core_weights core;
    actor_weights actor;
    layer_weights action_in, posterior;
    source mix_action, posterior_logits;
    const void *mix_bias, *posterior_logits_bias;
    const void *encoded, *previous_action, *kept, *belief, *state, *noise, *action_noise;
    void *next_belief, *next_state, *action;
} act_arguments;

typedef struct {
    long rows, width, threads, tile;
    const void *x, *scale;
    void *y;
    const void *d_y;
    void *d_x, *d_scales;
} norm_arguments;

typedef struct {
    long rows, threads;
    layer_weights layer;
    const void *x;
    void *before, *after;
} layer_arguments;

typedef struct {
    long rows, threads, layers;
    layer_weights layer[MOST_LAYERS];
    const void *x;
    void *y;
} perceptron_arguments;

typedef struct {
    long rows, count, targets, threads;
    const void *logits, *bins, *target;
    const double *weights;
    void *mean, *loss;
    const void *d_loss;
    void *d_logits;
} two_hot_arguments;

typedef struct {
    void *param, *mu, *nu, *step;
    const void *grad;
    long count;
} laprop_tensor;

typedef struct {
    long tensors, threads;
    const laprop_tensor *all;
    double lr, beta1, beta2, eps, clip, clip_floor, warmup;
} laprop_arguments;

/* Memory that is given back all at once. */
typedef struct {
    void *blocks[64];
    int count;
} arena;

static void *take(arena *memory, size_t bytes) {
    void *block = memory->count < 64 ? aligned_alloc(64, (bytes + 63) / 64 * 64 + 64) : 0;
    if (!block) {
        fprintf(stderr, "dreamer_torchrl: no %zu bytes for a kernel\n", bytes);
        abort();
    }
    return memory->blocks[memory->count++] = block;
}

static void release(arena *memory) {
    while (memory->count) free(memory->blocks[--memory->count]);
}

/* Work on rows in tiles, which threads take one after the other. */
typedef struct {
    void (*work)(const void *, long, int);
    const void *job;
    long rows, tile;
    atomic_long next;
} shared_work;

static void *work_on(void *given) {
    shared_work *shared = given;
    for (long row; (row = atomic_fetch_add(&shared->next, shared->tile)) < shared->rows;) {
        const long left = shared->rows - row;
        shared->work(shared->job, row, (int)(left < shared->tile ? left : shared->tile));
    }
    return 0;
}

static void share_tiles(void (*work)(const void *, long, int), const void *job, long rows, long tile, long threads) {
    shared_work shared = {work, job, rows, tile, 0};
    pthread_t others[64];
    long started = 0;
    while (started < threads - 1 && started < 64 && (started + 1) * tile < rows &&
           !pthread_create(&others[started], 0, work_on, &shared))
        started++;
    work_on(&shared); /* where no thread can be had, this one does all */
    while (started) pthread_join(others[--started], 0);
}

/* The same in tiles of at most so many rows, smaller where there would be less than one for each thread, but not so
 * small that a thread would take longer to start than to work. */
static void share(
    void (*work)(const void *, long, int), const void *job, long rows, long least, long most, long threads) {
    const long even = (rows + threads - 1) / threads, tile = even < most ? even : most;
    share_tiles(work, job, rows, tile > least ? tile : least, threads);
}

#define REAL float
#define NAME(f) f##_float
#include "vectors.h"
#include "math_float.h"
#include "layers.h"
#include "recurrence.h"
#include "observe.h"
#include "actor.h"
#include "imagine.h"
#include "act.h"
#include "layer.h"
#include "rowwise.h"
#include "laprop.h"
#undef REAL
#undef NAME
#undef LANES
#undef VECTOR
#undef ROWS
#undef MATRIX
#undef TOGETHER
#undef AHEAD

#define REAL double
#define NAME(f) f##_double
#include "vectors.h"
#include "math_double.h"
#include "layers.h"
#include "recurrence.h"
#include "observe.h"
#include "actor.h"
#include "imagine.h"
#include "act.h"
#include "layer.h"
#include "rowwise.h"
#include "laprop.h"
