/* Requests: what other threads ask of a vCPU, polled by it between blocks of guest code without a lock.
 *
 * A request is one bit of vcpu->requests.  vcpu_request() sets it (release) and makes sure that the vCPU sees it soon: a running
 * vCPU polls the word at every block; a halted one is woken.  The vCPU's loop clears a bit (acquire) and acts on it.
 */
#ifndef CORE_REQUEST_H
#define CORE_REQUEST_H

#include "base/types.h"

struct vm;
struct vcpu;

enum {
  REQ_TLB_FLUSH = 0, /* guest translations and everything derived from memory slots are stale */
  REQ_EXIT = 1,      /* leave vcpu_run with -EINTR (signal, immediate_exit, VM dying) */
  REQ_SYNC = 2,      /* vm_quiesce(): passing the poll is all that is asked */
  REQ_UNHALT = 3,
  REQ_RING_FULL = 4, /* the dirty ring may be at its soft limit */
  REQ_PROTECT = 5,   /* some translations must not be used for stores any more: the architecture knows which */
  REQ_ARCH = 8,      /* first bit that belongs to the architecture */
};

/* vcpu->gate.  Translated code compares one word at each block: it goes on while the gate equals the vm->write_epoch under which the
 * block's bytes were compared with memory.  A request closes the gate; the vCPU itself opens it again, before it enters such code. */

/* Where a vCPU is with respect to guest state; vm_request_all(wait) waits only for VCPU_RUNNING ones. */
enum vcpu_mode {
  VCPU_OUTSIDE, /* not in the run loop, or at a point where it holds nothing derived from memory slots */
  VCPU_RUNNING, /* between vcpu_enter() and vcpu_leave() */
};

/* Sets a request and kicks.  Any thread, any lock, async-signal-safe. */
void vcpu_request(struct vcpu *vcpu, unsigned req);
/* Sets requests (a mask) on the vCPU whose thread this is. */
void vcpu_request_self(struct vcpu *vcpu, u64 bits);
/* Opens the gate of one's own vCPU.  A request that came meanwhile is in vcpu->requests afterwards, or closes the gate again. */
void vcpu_open_gate(struct vcpu *vcpu);
/* Others than the guest may have written guest memory, and the guest may learn of it now: what was compared with memory has to be compared again. */
void vm_memory_changed(struct vm *vm);
/* Wakes the vCPU if it is halted and leaves it to vcpu_runnable() what happens. */
void vcpu_wake(struct vcpu *vcpu);
/* Wakes it if it is halted, to wait for what comes at `ns` (clock_now_ns(), some 100 us ahead at most) without sleeping. */
void vcpu_wake_near(struct vcpu *vcpu, u64 ns);

/* Sets `req` on every vCPU but `self` (may be NULL) and, with wait, returns only when each of them has handled requests or is
 * outside.  self must be VCPU_OUTSIDE or NULL where wait is set: it marks itself so (vcpu_leave) first, so that two waiters
 * cannot wait for one another.  May block; no lock that a running vCPU can want may be held. */
void vm_request_all(struct vm *vm, struct vcpu *self, unsigned req, bool wait);

/* Entering and leaving the state in which guest memory is accessed.  Both are cheap (one store each; enter has a full barrier). */
void vcpu_enter(struct vcpu *vcpu);
void vcpu_leave(struct vcpu *vcpu);
/* Called by the run loop after it took the request bits out and acted on them: releases vm_request_all() waiters. */
void vcpu_requests_done(struct vcpu *vcpu);

/* Sleeps until vcpu_runnable() or a request, a signal to this thread, or immediate_exit.  Called outside (vcpu_leave done).
 * 0 when runnable or a request is pending; -EINTR for a signal, immediate_exit or REQ_EXIT. */
int vcpu_halt(struct vcpu *vcpu);

#endif
