/* Which process this is, known without a system call, and what has to happen around fork(2). */
#ifndef BASE_PROCESS_H
#define BASE_PROCESS_H

#include <sys/types.h>
#include "base/types.h"

/* Registers the fork handlers.  Idempotent, any thread. */
void process_init(void);

extern _Atomic pid_t process_pid_cached;

/* getpid(), once process_init() has been called; right in a forked child too. */
static inline pid_t process_pid(void) { return atomic_load_explicit(&process_pid_cached, memory_order_relaxed); }

/* Processors this process may use. */
unsigned process_cpus(void);

#endif
