/* Which process this is, known without a system call, and what has to happen around fork(2). */
#ifndef BASE_PROCESS_H
#define BASE_PROCESS_H

#include <pthread.h>
#include <sys/types.h>
#include "base/types.h"

/* Registers the fork handlers.  Idempotent, any thread. */
void process_init(void);
/* Whether process_init() was called, here or in the process that forked this one. */
bool process_ready(void);

/* A page that the kernel clears in every child with memory of its own, however it was made: 0 there until first asked. */
extern union process_page {
  _Atomic pid_t pid;
  char bytes[PAGE_SIZE];
} process_page;
pid_t process_forked(void);

/* getpid(), once process_init() has been called; right in a forked child too. */
static inline pid_t process_pid(void) {
  pid_t pid = atomic_load_explicit(&process_page.pid, memory_order_relaxed);
  return likely(pid) ? pid : process_forked();
}

/* Whether this process runs in the memory of another, which waits (vfork): what it does to itself, as closing a descriptor, must
 * leave no trace there.  Costs a system call. */
bool process_is_guest(void);

/* Processors this process may use. */
unsigned process_cpus(void);

/* A mutex that is free in a forked child, whoever held it.  For data that any instruction leaves fit for a reader, or that a
 * child makes anew. */
struct fork_mutex {
  pthread_mutex_t *mutex;
  struct fork_mutex *next;
};
void process_add_mutex(struct fork_mutex *m);
#define FORK_MUTEX(name)                                                                                                         \
  static pthread_mutex_t name = PTHREAD_MUTEX_INITIALIZER;                                                                       \
  __attribute__((constructor)) static void name##_add(void) {                                                                    \
    static struct fork_mutex node = {.mutex = &name};                                                                            \
    process_add_mutex(&node);                                                                                                    \
  }                                                                                                                              \
  _Static_assert(1, "")

#endif
