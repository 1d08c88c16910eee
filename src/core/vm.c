/* The life cycle of a VM. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/evloop.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/process.h"
#include "base/rcu.h"
#include "base/signals.h"
#include "core/stats.h"
#include "core/vm_priv.h"

#define DEFAULT_HALT_POLL_NS 200000u /* as x86's KVM: its parameter halt_poll_ns */

static void init_fields(struct vm *vm, const struct arch_ops *arch) {
  vm->arch = arch;
  atomic_init(&vm->refs, 1);
  pthread_mutex_init(&vm->lock, NULL);
  pthread_mutex_init(&vm->slots_lock, NULL);
  pthread_mutex_init(&vm->irq_lock, NULL);
  vm->owner = process_pid();
  vm->created_ns = clock_now_ns();
  /* Spinning helps only where somebody else can run meanwhile. */
  vm->processors = process_cpus();
  atomic_init(&vm->max_halt_poll_ns, vm->processors > 1 ? DEFAULT_HALT_POLL_NS : 0);
}

static int create_parts(struct vm *vm) {
  vm->priv = calloc(1, sizeof(*vm->priv));
  vm->vcpus = calloc(vm->arch->max_vcpus, sizeof(*vm->vcpus));
  vm->evloop = evloop_create("uvirt-vm");
  if (!vm->priv || !vm->vcpus || !vm->evloop) return trace_error(-ENOMEM);
  pthread_mutex_init(&vm->priv->ring_lock, NULL);
  int r = vm_stats_create(vm);
  if (!r) r = memslots_create(vm);
  if (!r) r = io_buses_create(vm);
  if (!r) r = coalesced_create(vm);
  if (!r) r = routing_create(vm);
  if (!r) r = irqfds_create(vm);
  return r;
}

/* Reverse order of creation; parts that were never made are NULL. */
static void destroy_parts(struct vm *vm) {
  if (vm->priv) {
    irqfds_destroy(vm);
    routing_destroy(vm);
    io_buses_destroy(vm);
    ioeventfds_destroy(vm);
    coalesced_destroy(vm);
    memslots_destroy(vm);
  }
  vm_stats_destroy(vm);
  evloop_destroy(vm->evloop);
  free(vm->vcpus);
  free(vm->priv);
  free(vm);
}

static void *alloc_object(size_t size) {
  size = ALIGN_UP(size, (size_t)PAGE_SIZE); /* page-aligned: no cache line is shared with strangers */
  void *p = aligned_alloc(PAGE_SIZE, size);
  if (p) memset(p, 0, size);
  return p;
}

int vm_create(const struct arch_ops *arch, unsigned long type, struct vm **out) {
  process_init();
  fault_install();
  signals_changed();
  struct vm *vm = alloc_object(arch->vm_size);
  if (!vm) return trace_error(-ENOMEM);
  init_fields(vm, arch);
  int r = create_parts(vm);
  if (!r) r = arch->vm_create(vm, type);
  if (r) {
    destroy_parts(vm);
    return r;
  }
  *out = vm;
  return 0;
}

void vm_get(struct vm *vm) { atomic_fetch_add_explicit(&vm->refs, 1, memory_order_relaxed); }

void vm_release(struct vm *vm) { irqfds_release(vm); }

/* The last reference is gone: nobody else can reach the VM.  Timers and watches end first, for they act on vCPUs and chips. */
static void vm_destroy(struct vm *vm) {
  irqfds_release(vm);
  evloop_stop(vm->evloop);
  for (unsigned i = 0; i < atomic_load(&vm->n_vcpus); i++) vcpu_destroy(vm->vcpus[i]);
  vm->arch->vm_destroy(vm);
  destroy_parts(vm);
}

void vm_put(struct vm *vm) {
  /* acq_rel: what other holders did before their put is seen by the one that destroys. */
  if (atomic_fetch_sub_explicit(&vm->refs, 1, memory_order_acq_rel) != 1) return;
  /* A forked child has neither the VM's threads nor a right to its locks: it only forgets. */
  if (vm->owner == process_pid()) vm_destroy(vm);
}
