/* vCPUs: creation, the shared pages, references. */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include "core/core_priv.h"
#include "core/vcpu_pages.h"

static int map_pages(struct vcpu *v) {
  v->fd = memfd_create("kvm-vcpu", MFD_CLOEXEC);
  if (v->fd < 0) return -errno;
  if (ftruncate(v->fd, VCPU_MMAP_SIZE)) return -errno;
  void *p = mmap(NULL, VCPU_MMAP_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
  if (p == MAP_FAILED) return -errno;
  v->run = p;
  v->pio_data = (u8 *)p + KVM_PIO_PAGE_OFFSET * PAGE_SIZE;
  v->coalesced = (void *)((u8 *)p + KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE_SIZE);
  v->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return v->wake_fd < 0 ? -errno : 0;
}

static void release(struct vcpu *v) {
  if (v->run) munmap(v->run, VCPU_MMAP_SIZE);
  if (v->wake_fd >= 0) close(v->wake_fd);
  pthread_mutex_destroy(&v->mutex);
  free(v);
}

void vcpu_free(struct vcpu *v) {
  v->vm->arch->vcpu_destroy(v);
  release(v);
}

static int create_locked(struct vm *vm, u32 id, struct vcpu **out) {
  unsigned n = atomic_load(&vm->n_vcpus);
  if (n >= vm->arch->max_vcpus) return -EINVAL;
  if (vm_vcpu_by_id(vm, id)) return -EEXIST;
  struct vcpu *v = aligned_alloc(64, ALIGN_UP(vm->arch->vcpu_size, 64ul));
  if (!v) return -ENOMEM;
  memset(v, 0, vm->arch->vcpu_size);
  v->vm = vm;
  v->id = id;
  v->index = n;
  v->fd = v->wake_fd = -1;
  atomic_store(&v->refs, 1);
  pthread_mutex_init(&v->mutex, NULL);
  int r = map_pages(v);
  if (!r) r = vm->arch->vcpu_create(v);
  if (r) {
    if (v->fd >= 0) close(v->fd);
    release(v);
    return r;
  }
  vm_get(vm);
  vm->vcpus[n] = v;
  atomic_store_explicit(&vm->n_vcpus, n + 1, memory_order_release); /* publishes the entry above */
  *out = v;
  return 0;
}

int vcpu_create(struct vm *vm, u32 id, struct vcpu **out) {
  if (id >= vm->arch->max_vcpu_id) return -EINVAL;
  pthread_mutex_lock(&vm->lock);
  int r = create_locked(vm, id, out);
  pthread_mutex_unlock(&vm->lock);
  return r;
}

void vcpu_get(struct vcpu *v) { atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed); }

void vcpu_put(struct vcpu *v) {
  /* The object stays with its VM; only the reference on it goes. */
  if (atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel) == 1) vm_put(v->vm);
}
