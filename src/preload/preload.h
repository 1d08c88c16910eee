/* What the files of the preload library share.
 *
 * Each interposed function asks first whether the call concerns a virtual device node or one of our descriptors; if not, or if
 * the library itself is calling, the function of the same name behind us in the search order gets the call unchanged.
 *
 * These files are compiled without _FILE_OFFSET_BITS and _FORTIFY_SOURCE (meson.build): both make the headers rename functions.
 */
#ifndef PRELOAD_PRELOAD_H
#define PRELOAD_PRELOAD_H

#include <stdbool.h>
#include <sys/types.h>
#include "api/front.h"
#include "base/types.h"
#include "uvirt.h"

#define INTERPOSE __attribute__((visibility("default")))

enum real_index {
#define FN(name) REAL_##name,
#include "preload/real.def"
#undef FN
  REAL_COUNT
};
extern void *_Atomic real_functions[REAL_COUNT];
void *real_look_up(enum real_index i);

/* The function that the program would have called without us, with the type of the declared function fn.  All are looked up when
 * the library is loaded (so that none is in a signal handler); a call that comes earlier still looks up its own. */
#define REAL(fn)                                                                                                                 \
  ({                                                                                                                             \
    void *real_ = atomic_load_explicit(&real_functions[REAL_##fn], memory_order_relaxed);                                        \
    (__typeof__(&fn))(likely(real_) ? real_ : real_look_up(REAL_##fn));                                                          \
  })

/* Whether the call is about one of our descriptors and not the library's own. */
static inline bool ours(int fd) {
  return unlikely(uvirt_is_ours(fd)) && !front_inside();
}

/* Sets errno and returns -1. */
int fail(int err);

/* ---- paths.c ---- */

/* Whether path, relative to dirfd unless absolute, names a virtual device node. */
bool is_node(int dirfd, const char *path);

/* ---- open.c ---- */

/* open(2) of a node. */
int open_node(int flags);

#endif
