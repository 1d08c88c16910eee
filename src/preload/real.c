/* The functions behind ours in the search order, and the library's own way to two of them. */
#include <dlfcn.h>
#include <errno.h>
#include "preload/preload.h"

void *_Atomic real_functions[REAL_COUNT];

static const char *const names[] = {
#define FN(name) #name,
#include "preload/real.def"
#undef FN
};

void *real_look_up(enum real_index i) {
  void *p = dlsym(RTLD_NEXT, names[i]);
  atomic_store_explicit(&real_functions[i], p, memory_order_relaxed);
  return p;
}

__attribute__((constructor)) static void look_up_all(void) {
  for (unsigned i = 0; i < REAL_COUNT; i++) real_look_up(i);
  front_set_signal_functions(REAL(sigaction), REAL(pthread_sigmask));
}

int fail(int err) {
  errno = err;
  return -1;
}
