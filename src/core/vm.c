/* VMs: creation, references, destruction, the table of vCPUs. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/evloop.h"
#include "base/fault.h"
#include "core/core_priv.h"

int vm_create(const struct arch_ops *arch, unsigned long type, struct vm **out) {
  int r = fault_init();
  if (r) return r;
  struct vm *vm = aligned_alloc(64, ALIGN_UP(arch->vm_size, 64ul));
  if (!vm) return -ENOMEM;
  memset(vm, 0, arch->vm_size);
  vm->arch = arch;
  atomic_store(&vm->refs, 1);
  pthread_mutex_init(&vm->lock, NULL);
  pthread_mutex_init(&vm->slots_lock, NULL);
  pthread_mutex_init(&vm->irq_lock, NULL);
  vm->owner = getpid();
  vm->created_ns = clock_now_ns();
  vm->vcpus = calloc(arch->max_vcpus, sizeof(*vm->vcpus));
  r = vm->vcpus ? memslots_init(vm) : -ENOMEM;
  if (!r) r = io_buses_init(vm);
  if (!r) r = routing_init(vm);
  if (!r) {
    vm->evloop = evloop_create("uvirt-vm");
    if (!vm->evloop) r = -ENOMEM;
  }
  if (!r) r = arch->vm_create(vm, type);
  if (r) {
    evloop_destroy(vm->evloop);
    routing_destroy(vm);
    io_buses_destroy(vm);
    memslots_destroy(vm);
    free(vm->vcpus);
    free(vm);
    return r;
  }
  *out = vm;
  return 0;
}

void vm_get(struct vm *vm) { atomic_fetch_add_explicit(&vm->refs, 1, memory_order_relaxed); }

void vm_put(struct vm *vm) {
  if (atomic_fetch_sub_explicit(&vm->refs, 1, memory_order_acq_rel) != 1) return;
  irqfds_destroy(vm); /* first what calls in from the service thread */
  for (unsigned n = 0; n < atomic_load(&vm->n_vcpus); n++) vcpu_free(vm->vcpus[n]);
  io_buses_destroy(vm);
  vm->arch->vm_destroy(vm);
  evloop_destroy(vm->evloop);
  routing_destroy(vm);
  memslots_destroy(vm);
  free(vm->vcpus);
  pthread_mutex_destroy(&vm->lock);
  pthread_mutex_destroy(&vm->slots_lock);
  pthread_mutex_destroy(&vm->irq_lock);
  free(vm);
}

struct vcpu *vm_vcpu_by_id(struct vm *vm, u32 id) {
  unsigned n = atomic_load_explicit(&vm->n_vcpus, memory_order_acquire);
  if (id < n && vm->vcpus[id]->id == id) return vm->vcpus[id];
  for (unsigned k = 0; k < n; k++)
    if (vm->vcpus[k]->id == id) return vm->vcpus[k];
  return NULL;
}
