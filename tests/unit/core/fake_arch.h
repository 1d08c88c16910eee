/* An architecture without a processor: its vCPUs run host functions, its chips record what they are told. */
#ifndef FAKE_ARCH_H
#define FAKE_ARCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "api/fd.h"
#include "api/ioctl.h"
#include "core/dirty_ring.h"
#include "core/memslot.h"
#include "core/route.h"
#include "core/stats.h"
#include "uvirt.h"

#define FAKE_CAP 4242 /* answered by the architecture: 7 on the system descriptor, 8 on a VM */

struct fake_vm {
  struct vm core;
  _Atomic bool irqchip;
  _Atomic int prepared, committed, refuse_slots; /* slot hooks */
  enum slot_change last_change;
  _Atomic int line[64]; /* last level by chip pin */
  _Atomic int raises[64], lowers[64];
  _Atomic int last_source;
  _Atomic u64 last_msi_data;
  _Atomic int routes_changed;
};

struct fake_vcpu;
/* One turn of the guest, between vcpu_enter() and vcpu_leave().  0 goes on; FAKE_EXIT leaves with what is in run; FAKE_HALT
 * halts; negative errno leaves with it. */
typedef int fake_step(struct fake_vcpu *c);
enum { FAKE_EXIT = 1, FAKE_HALT = 2 };

struct fake_vcpu {
  struct vcpu core;
  fake_step *step;
  void *arg;
  _Atomic bool runnable;
  _Atomic u64 steps, flushes, completions;
  bool pending_io;
};

static inline struct fake_vm *fake_vm(struct vm *vm) { return (struct fake_vm *)vm; }
static inline struct fake_vcpu *fake_vcpu(struct vcpu *vcpu) { return (struct fake_vcpu *)vcpu; }

extern _Atomic int fake_vms_alive, fake_vcpus_alive;

/* ---- a machine for tests: descriptors and the objects behind them ---- */

struct machine {
  int kvm, vm_fd, vcpu_fd[8];
  unsigned n;
  struct fake_vm *vm;
  struct fake_vcpu *vcpu[8];
  struct kvm_run *run[8];
  pthread_t thread[8];
  u8 *ram;
  size_t ram_size;
};

/* A VM with n vCPUs and 1 MiB of memory at 0 in slot 0. */
void machine_up(struct machine *m, unsigned n);
/* The vCPUs of a machine that was made with none. */
void machine_add(struct machine *m, unsigned n);
void machine_down(struct machine *m);
/* Closes and unmaps, and asserts nothing about what is left. */
void machine_down_fds(struct machine *m);

#ifdef __SANITIZE_THREAD__
#define SKIP_UNDER_TSAN() skip()
#else
#define SKIP_UNDER_TSAN() (void)0
#endif

/* Runs a vCPU on a thread of its own until machine_stop(), which returns KVM_RUN's result. */
void machine_start(struct machine *m, unsigned i, fake_step *step, void *arg);
int machine_stop(struct machine *m, unsigned i);
/* Waits until the vCPU has made n more turns. */
void machine_turns(struct machine *m, unsigned i, u64 n);

/* Whether to repeat: n times, or what fits into three seconds where other programs keep the threads waiting; ten times in any case. */
bool again(unsigned done, unsigned n, u64 *end);

/* -errno instead of -1. */
int call(int fd, unsigned long request, void *arg);
int set_slot(int vm_fd, u32 slot, u32 flags, u64 gpa, u64 size, const void *host);
void *map_pages(size_t n);

#endif
