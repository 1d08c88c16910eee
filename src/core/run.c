/* The neutral half of KVM_RUN. */
#include <errno.h>
#include <signal.h>
#include "core/vm.h"

static int run(struct vcpu *v) {
  if (READ_ONCE(v->run->immediate_exit)) { /* api.rst 4.10: a pending I/O is completed, then -EINTR */
    int r = v->vm->arch->vcpu_complete_io(v);
    if (r < 0) return r;
    v->run->exit_reason = KVM_EXIT_INTR;
    return -EINTR;
  }
  return v->vm->arch->vcpu_run(v);
}

int vcpu_run(struct vcpu *v) {
  sigset_t old;
  v->thread = pthread_self();
  if (!v->sigset_active) return run(v);
  pthread_sigmask(SIG_SETMASK, &v->sigset, &old);
  int r = run(v);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return r;
}
