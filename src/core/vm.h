/* The VM and vCPU objects and their life cycle. */
#ifndef CORE_VM_H
#define CORE_VM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include "base/types.h"
#include "core/arch.h"
#include "core/request.h"

struct memslots;
struct io_bus;
struct irq_routing;
struct irqfds;
struct evloop;
struct vm_stats;
struct vcpu_stats;
struct vm_priv;
struct dirty_ring;

enum io_bus_kind { BUS_MMIO, BUS_PIO, BUS_KINDS };

/* Legend: (o) set once at creation  (r) RCU: read inside rcu_read_lock  [l] vm->lock  [s] vm->slots_lock  [i] vm->irq_lock */
struct vm {
  const struct arch_ops *arch;      /* (o) */
  _Atomic int refs;                 /* descriptors, vCPUs and devices hold one each */
  pthread_mutex_t lock;             /* vCPU creation, chips, capabilities: KVM's kvm->lock */
  pthread_mutex_t slots_lock;       /* memory slots and buses */
  pthread_mutex_t irq_lock;         /* routing and irqfds */
  struct memslots *slots[2];        /* (r) [s] one per address space */
  struct io_bus *bus[BUS_KINDS];    /* (r) [s] */
  struct irq_routing *routing;      /* (r) [i] */
  struct irqfds *irqfds;            /* (o) core/irqfd.c, with a lock of its own */
  struct vcpu **vcpus;              /* max_vcpus slots, filled in index order, entry published before n_vcpus */
  _Atomic unsigned n_vcpus;
  struct evloop *evloop;            /* the VM's service thread: timers and irqfds; started by first use */
  _Atomic bool dead;                /* creator process gone or bugged: ioctls answer -EIO */
  _Atomic u64 write_epoch;          /* bumped when others may have written guest memory: code blocks re-validate (see x86/block.h) */
  _Atomic u64 outside_irqs;         /* interrupts raised by others than vCPUs and their timers, roughly: such a one may tell of written memory */
  pid_t owner;                      /* (o) ioctls from another process answer -EIO as KVM does */
  u64 created_ns;
  struct vm_stats *stats;           /* (o) core/stats.h */
  u64 dirty_flags;                  /* [s] KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
  u32 dirty_ring_bytes;             /* of each vCPU's dirty ring, 0: bitmaps; [l], set before the first vCPU */
  _Atomic u32 max_halt_poll_ns;     /* KVM_CAP_HALT_POLL */
  u32 processors;                   /* (o) that its threads may run on */
  bool halt_in_guest;               /* a halted vCPU keeps its processor (x86: KVM_X86_DISABLE_EXITS_HLT) */
  struct vm_priv *priv;             /* (o) core's private part: core/vm_priv.h */
};

struct vcpu {
  struct vm *vm;                    /* (o) holds a reference */
  u32 id;                           /* (o) KVM_CREATE_VCPU's argument */
  u32 index;                        /* (o) position in vm->vcpus */
  int fd;                           /* (o) the memfd with kvm_run; owned by the descriptor table */
  _Atomic int refs;
  struct kvm_run *run;              /* (o) our mapping of the memfd: kvm_run, the PIO page, the coalesced page, the dirty ring */
  u8 *pio_data;                     /* (o) page 1 of the mapping (KVM_PIO_PAGE_OFFSET) */
  struct kvm_coalesced_mmio_ring *coalesced; /* (o) page 2 */
  struct dirty_ring *dirty_ring;    /* (o) core/dirty_ring.h; NULL without */
  pthread_mutex_t mutex;            /* held by vCPU ioctls, KVM_RUN included */
  _Atomic u64 requests;             /* see request.h */
  _Atomic u64 gate;                 /* vm->write_epoch while running code may go on, 0 when a request waits; see request.h */
  _Atomic int mode;                 /* enum vcpu_mode */
  _Atomic u32 handled;              /* counts vcpu_requests_done(): vm_request_all() waits on it */
  _Atomic bool halted;              /* asleep in vcpu_halt() */
  _Atomic u64 asleep_since;         /* when it went to sleep there (clock_now_ns), 0: it did not */
  _Atomic int wake_fd;              /* eventfd that vcpu_halt() sleeps on; -1 until the first halt */
  u32 halt_poll_ns;                 /* own thread: how long the next halt spins first */
  u32 wake_lead_ns;                 /* own thread: how long it takes to come out of a sleep (base/lead.h) */
  u64 slept_ns;                     /* own thread: in its last sleep */
  _Atomic u64 near_ns;              /* a reason to end its sleep comes at this time; 0: nobody knows */
  pthread_t thread;                 /* of the last KVM_RUN */
  bool sigset_active;               /* KVM_SET_SIGNAL_MASK given */
  sigset_t sigset;
  struct vcpu_stats *stats;         /* (o) core/stats.h; incremented by the vCPU's own thread only */
  void *priv;
  void *memory;                     /* (o) what it lies in */
};

/* Creates a VM with one reference.  -EINVAL for an unknown type. */
int vm_create(const struct arch_ops *arch, unsigned long type, struct vm **out);
void vm_get(struct vm *vm);
void vm_put(struct vm *vm);
/* KVM_CREATE_VCPU.  -EINVAL: id too large or too many; -EEXIST: id in use.  On success the caller owns one reference. */
int vcpu_create(struct vm *vm, u32 id, struct vcpu **out);
void vcpu_get(struct vcpu *vcpu);
void vcpu_put(struct vcpu *vcpu);
struct vcpu *vm_vcpu_by_id(struct vm *vm, u32 id);

static inline struct vcpu *vm_vcpu(struct vm *vm, unsigned index) {
  return index < atomic_load_explicit(&vm->n_vcpus, memory_order_acquire) ? vm->vcpus[index] : NULL;
}

/* The VM's descriptor is closed: irqfds end, although vCPUs and devices may keep the VM itself. */
void vm_release(struct vm *vm);
/* A page of the client's kvm_run mapping that does not live in the vCPU's memfd: page 2 is one ring for all vCPUs.  NULL: the memfd's. */
void *vcpu_mmap_page(struct vcpu *vcpu, unsigned page);
#define VCPU_MMAP_PAGES 3 /* kvm_run, PIO data, coalesced ring */

/* The neutral half of KVM_RUN (core/run.c): immediate_exit, signal mask, arch->vcpu_run. */
int vcpu_run(struct vcpu *vcpu);

#endif
