/* A VM's code memory: filled from the front with code and from the back with words that code reads, emptied as a whole. */
#ifndef JIT_ARENA_H
#define JIT_ARENA_H

#include "base/types.h"

/* The same memory mapped twice: written at rw, executed at rx. */
struct jit_arena {
  u8 *rw, *rx;
  size_t size;
  _Atomic size_t used;  /* bytes of code */
  _Atomic size_t words; /* bytes of words at the end; both are looked at without the lock that protects them */
};

/* size: bytes, at most 1 GiB, so that 32-bit displacements reach.  Pages are taken as used.  anonymous: no file, which perf(1) would look for names
 * in.  -errno. */
int jit_arena_create(struct jit_arena *a, size_t size, bool anonymous);
void jit_arena_destroy(struct jit_arena *a);
/* Forgets everything and gives its pages back; nobody may be running there. */
void jit_arena_reset(struct jit_arena *a);
static inline size_t jit_arena_room(const struct jit_arena *a) {
  return a->size - a->used - a->words;
}
static inline bool jit_arena_holds(const struct jit_arena *a, const void *rx) {
  return (uintptr_t)rx - (uintptr_t)a->rx < a->size;
}

#endif
