/* Host faults (SIGSEGV, SIGBUS) on guest or client memory as values: a guard, armed once around much code. */
#ifndef BASE_FAULT_H
#define BASE_FAULT_H

#include <setjmp.h>
#include "base/types.h"

struct fault_guard {
  sigjmp_buf env;
  struct fault_guard *outer;
};

/* The innermost guard of this thread. */
extern __thread struct fault_guard *fault_current;

/* Installs the handlers, once per process; the client's previous ones get every fault outside a guard. */
int fault_init(void);

/* if (!fault_try(&guard)) { ...; fault_end(&guard); } else { a fault came; the guard is no longer armed }
 * The signal mask is not saved: the handler unblocks what the kernel blocked for it. */
#define fault_try(guard) ((guard)->outer = fault_current, fault_current = (guard), sigsetjmp((guard)->env, 0))
#define fault_end(guard) ((void)(fault_current = (guard)->outer))

#endif
