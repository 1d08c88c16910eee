/* The life cycle of a vCPU and the pages it shares with the client. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/evloop.h"
#include "base/log.h"
#include "base/ownfd.h"
#include "base/signals.h"
#include "core/dirty_ring.h"
#include "core/stats.h"
#include "core/vm_priv.h"

static struct vcpu *alloc_vcpu(struct vm *vm, u32 id) {
  size_t size = ALIGN_UP(vm->arch->vcpu_size, (size_t)PAGE_SIZE);
  void *memory = calloc(1, size + PAGE_SIZE); /* most of it are tables: pages that nobody uses are not touched */
  if (!memory) return NULL;
  struct vcpu *vcpu = (struct vcpu *)ALIGN_UP((uintptr_t)memory, (uintptr_t)PAGE_SIZE);
  vcpu->memory = memory;
  vcpu->vm = vm;
  vcpu->id = id;
  vcpu->index = atomic_load(&vm->n_vcpus);
  vcpu->fd = -1;
  atomic_init(&vcpu->refs, 1);
  atomic_init(&vcpu->wake_fd, -1);
  pthread_mutex_init(&vcpu->mutex, NULL);
  return vcpu;
}

/* kvm_run and the PIO page are the memfd's, so that the client's mapping and ours are the same pages.  The seals keep the client
 * from cutting pages off under us. */
static int map_run(struct vcpu *vcpu) {
  char name[32];
  size_t size = VCPU_MMAP_PAGES * PAGE_SIZE, ring = vcpu->vm->dirty_ring_bytes;
  snprintf(name, sizeof(name), "kvm-vcpu:%u", vcpu->id);
  vcpu->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (vcpu->fd < 0) return trace_error(-errno);
  if (ftruncate(vcpu->fd, (off_t)(ring ? DIRTY_RING_PAGE * PAGE_SIZE + ring : size))) return trace_error(-errno);
  fcntl(vcpu->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
  if (p == MAP_FAILED) return trace_error(-errno);
  vcpu->run = p;
  vcpu->pio_data = (u8 *)p + KVM_PIO_PAGE_OFFSET * PAGE_SIZE;
  vcpu->coalesced = vcpu->vm->priv->ring;
  return dirty_ring_create(vcpu);
}

void *vcpu_mmap_page(struct vcpu *vcpu, unsigned page) {
  return page == KVM_COALESCED_MMIO_PAGE_OFFSET ? vcpu->vm->priv->ring : NULL;
}

/* Frees what create_parts made; also half-made. */
static void free_vcpu(struct vcpu *vcpu) {
  int wake = atomic_load(&vcpu->wake_fd);
  own_fd_close(wake);
  vcpu_stats_destroy(vcpu);
  dirty_ring_destroy(vcpu);
  if (vcpu->run) munmap(vcpu->run, VCPU_MMAP_PAGES * PAGE_SIZE);
  pthread_mutex_destroy(&vcpu->mutex);
  free(vcpu->memory);
}

static int create_parts(struct vcpu *vcpu) {
  int r = map_run(vcpu);
  if (!r) r = vcpu_stats_create(vcpu);
  if (!r) r = evloop_start(vcpu->vm->evloop);
  if (!r) r = vcpu->vm->arch->vcpu_create(vcpu);
  return r;
}

static int create_locked(struct vm *vm, u32 id, struct vcpu **out) {
  unsigned n = atomic_load(&vm->n_vcpus);
  if (n >= vm->arch->max_vcpus) return trace_error(-EINVAL);
  if (vm_vcpu_by_id(vm, id)) return -EEXIST;
  struct vcpu *vcpu = alloc_vcpu(vm, id);
  if (!vcpu) return trace_error(-ENOMEM);
  int r = create_parts(vcpu);
  if (r) {
    if (vcpu->fd >= 0) close(vcpu->fd);
    free_vcpu(vcpu);
    return r;
  }
  vm_get(vm);
  vm->vcpus[n] = vcpu;
  /* release: whoever sees the new count sees the entry and the finished vCPU. */
  atomic_store_explicit(&vm->n_vcpus, n + 1, memory_order_release);
  *out = vcpu;
  return 0;
}

int vcpu_create(struct vm *vm, u32 id, struct vcpu **out) {
  if (id >= vm->arch->max_vcpu_id) return trace_error(-EINVAL);
  signals_changed();
  pthread_mutex_lock(&vm->lock);
  int r = create_locked(vm, id, out);
  pthread_mutex_unlock(&vm->lock);
  return r;
}

/* As in KVM, a vCPU stays part of its VM until the VM ends; references only keep the VM. */
void vcpu_get(struct vcpu *vcpu) {
  if (atomic_fetch_add_explicit(&vcpu->refs, 1, memory_order_relaxed) == 0) vm_get(vcpu->vm);
}

void vcpu_put(struct vcpu *vcpu) {
  struct vm *vm = vcpu->vm;
  if (atomic_fetch_sub_explicit(&vcpu->refs, 1, memory_order_acq_rel) == 1) vm_put(vm);
}

void vcpu_destroy(struct vcpu *vcpu) {
  vcpu->vm->arch->vcpu_destroy(vcpu);
  free_vcpu(vcpu);
}

struct vcpu *vm_vcpu_by_id(struct vm *vm, u32 id) {
  unsigned n = atomic_load_explicit(&vm->n_vcpus, memory_order_acquire);
  if (id < n && vm->vcpus[id]->id == id) return vm->vcpus[id]; /* nearly always */
  for (unsigned i = 0; i < n; i++)
    if (vm->vcpus[i]->id == id) return vm->vcpus[i];
  return NULL;
}
