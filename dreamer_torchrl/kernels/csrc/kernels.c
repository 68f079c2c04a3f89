/* Kernels of one type of number, float or with DOUBLE double: plain vectors of the compiler, threads of their own.
 * Those that structures.h declares take one structure with addresses of tensors, and give 0, or 1 for lack of memory. */

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#ifdef DOUBLE
typedef double real;
#else
typedef float real;
#endif

#include "structures.h"

/* Memory that is given back all at once. Where there is none, `take` goes back to where the arena was opened. */
typedef struct { jmp_buf without; void *blocks[64]; int count; } Arena;

static void *take(Arena *memory, size_t bytes) {
    void *block = memory->count < 64 ? aligned_alloc(64, (bytes + 63) / 64 * 64 + 64) : 0;
    if (!block) longjmp(memory->without, 1);
    return memory->blocks[memory->count++] = block;
}

static void release(Arena *memory) { while (memory->count) free(memory->blocks[--memory->count]); }

/* Open an arena in a function that gives 1 where there is no memory. */
#define OPEN(memory)              \
    Arena memory;                 \
    memory.count = 0;             \
    if (setjmp(memory.without)) { \
        release(&memory);         \
        return 1;                 \
    }

/* Work on rows in tiles, which threads take one after the other. */
typedef void (*Work)(const void *job, long row, int n, Arena *memory);

typedef struct {
    Work work;
    const void *job;
    long rows, tile;
    atomic_long next;
    atomic_int failed;
} Shared;

static int work_on_tiles(Shared *shared) {
    OPEN(memory)
    for (long row; (row = atomic_fetch_add(&shared->next, shared->tile)) < shared->rows;) {
        const long left = shared->rows - row;
        shared->work(shared->job, row, left < shared->tile ? left : shared->tile, &memory);
        release(&memory);
    }
    return 0;
}

static void *work_on(void *shared) {
    if (work_on_tiles(shared)) ((Shared *)shared)->failed = 1;
    return 0;
}

static int share_tiles(Work work, const void *job, long rows, long tile, long threads) {
    Shared shared = {work, job, rows, tile, 0, 0};
    pthread_t others[MOST_THREADS];
    long started = 0;
    while (started < threads - 1 && started < MOST_THREADS && (started + 1) * tile < rows &&
           !pthread_create(&others[started], 0, work_on, &shared))
        started++;
    work_on(&shared); /* where no thread can be had, this one does all */
    while (started) pthread_join(others[--started], 0);
    return shared.failed;
}

/* The same with a tile size that aims at one tile per thread, clamped to [least, most]. */
static int share(Work work, const void *job, long rows, long least, long most, long threads) {
    const long even = (rows + threads - 1) / threads, tile = even < most ? even : most;
    return share_tiles(work, job, rows, tile > least ? tile : least, threads);
}

#include "vectors.h"
#ifdef DOUBLE
#include "math_double.h"
#else
#include "math_float.h"
#endif
#include "layers.h"
#include "recurrence.h"
#include "observe.h"
#include "actor.h"
#include "imagine.h"
#include "act.h"
#include "rowwise.h"
#include "laprop.h"
