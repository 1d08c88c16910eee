/* Dirty rings: their pages, filling and giving back entries. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/log.h"
#include "core/dirty.h"
#include "core/dirty_ring.h"
#include "core/memslot.h"
#include "core/vm_priv.h"

#define WORD_PAGES 64u

static bool power_of_two(u64 v) {
  return v && !(v & (v - 1));
}

int vm_enable_dirty_ring(struct vm *vm, u64 bytes) {
  int r = -EINVAL;
  if (!power_of_two(bytes) || bytes < DIRTY_RING_RESERVED * sizeof(struct kvm_dirty_gfn) || bytes < PAGE_SIZE)
    return trace_error(-EINVAL);
  if (bytes > DIRTY_RING_BYTES_MAX) return trace_error(-E2BIG);
  pthread_mutex_lock(&vm->lock);
  if (!vm->dirty_ring_bytes && !atomic_load(&vm->n_vcpus)) {
    vm->dirty_ring_bytes = (u32)bytes;
    r = 0;
  }
  pthread_mutex_unlock(&vm->lock);
  return r;
}

/* ---- pages ---- */

int dirty_ring_create(struct vcpu *vcpu) {
  size_t bytes = vcpu->vm->dirty_ring_bytes;
  if (!bytes) return 0;
  struct dirty_ring *ring = calloc(1, sizeof(*ring));
  if (!ring) return trace_error(-ENOMEM);
  ring->entry = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, DIRTY_RING_PAGE * PAGE_SIZE);
  if (ring->entry == MAP_FAILED) {
    free(ring);
    return trace_error(-errno);
  }
  ring->size = (u32)(bytes / sizeof(*ring->entry));
  vcpu->dirty_ring = ring;
  return 0;
}

void dirty_ring_destroy(struct vcpu *vcpu) {
  if (!vcpu->dirty_ring) return;
  munmap(vcpu->dirty_ring->entry, vcpu->vm->dirty_ring_bytes);
  free(vcpu->dirty_ring);
}

static bool is_ring_page(const struct vm *vm, u64 page) {
  return page >= DIRTY_RING_PAGE && page < DIRTY_RING_PAGE + vm->dirty_ring_bytes / PAGE_SIZE;
}

bool dirty_ring_mapped(const struct vm *vm, u64 offset, u64 length) {
  u64 first = offset >> PAGE_SHIFT, pages = ALIGN_UP(length, (u64)PAGE_SIZE) >> PAGE_SHIFT;
  return is_ring_page(vm, first) || is_ring_page(vm, first + pages - 1);
}

/* ---- filling ---- */

void dirty_ring_push(struct vcpu *vcpu, u16 as_id, u16 slot, u64 page) {
  struct dirty_ring *ring = vcpu->dirty_ring;
  u32 index = atomic_load_explicit(&ring->dirty_index, memory_order_relaxed);
  struct kvm_dirty_gfn *e = &ring->entry[index & (ring->size - 1)];
  e->slot = (u32)as_id << 16 | slot;
  e->offset = page;
  atomic_store_explicit(&ring->dirty_index, index + 1, memory_order_relaxed);
  /* release: the entry is complete before the client sees it, and KVM_RESET_DIRTY_RINGS takes whatever the client has seen. */
  __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
  if (vcpu_ring_soft_full(vcpu)) vcpu_request(vcpu, REQ_RING_FULL);
}

/* ---- giving back ---- */

/* Pages of one word of a slot's bitmap, collected so that they are cleared at once. */
struct run {
  u32 slot;
  u64 word, mask;
};

/* The client wrote the entry last: slot and page may be anything. */
static void clear_run(struct vm *vm, const struct run *run) {
  if (!run->mask || run->slot >> 16 >= vm->arch->address_spaces) return;
  const struct memslot *slot = memslot_by_id_locked(vm, run->slot >> 16, run->slot & 0xffff);
  if (!slot || !slot->dirty_bitmap || run->word * WORD_PAGES >= slot->npages) return;
  dirty_word_clear(slot, run->word, run->mask);
}

static unsigned reset_ring(struct vm *vm, struct dirty_ring *ring) {
  u32 index = atomic_load_explicit(&ring->reset_index, memory_order_relaxed);
  u32 end = atomic_load_explicit(&ring->dirty_index, memory_order_acquire);
  struct run run = {0};
  unsigned n = 0;
  for (; index != end; index++, n++) {
    struct kvm_dirty_gfn *e = &ring->entry[index & (ring->size - 1)];
    /* acquire: the client has read the entry. */
    if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_RESET)) break;
    u32 slot = __atomic_load_n(&e->slot, __ATOMIC_RELAXED);
    u64 page = __atomic_load_n(&e->offset, __ATOMIC_RELAXED);
    if (slot != run.slot || page / WORD_PAGES != run.word) {
      clear_run(vm, &run);
      run = (struct run){.slot = slot, .word = page / WORD_PAGES};
    }
    run.mask |= BIT(page % WORD_PAGES);
    __atomic_store_n(&e->flags, 0, __ATOMIC_RELEASE);
  }
  clear_run(vm, &run);
  /* release: the entries are free before the vCPU may fill them. */
  atomic_store_explicit(&ring->reset_index, index, memory_order_release);
  return n;
}

/* A store through a translation that is still writable after its page's bit was cleared is seen by the client, which reads the
 * page after this returns; every later one finds a read-only translation. */
int vm_reset_dirty_rings(struct vm *vm) {
  if (!vm->dirty_ring_bytes) return trace_error(-EINVAL);
  unsigned cleared = 0, n = atomic_load_explicit(&vm->n_vcpus, memory_order_acquire);
  pthread_mutex_lock(&vm->slots_lock);
  for (unsigned i = 0; i < n; i++) cleared += reset_ring(vm, vm->vcpus[i]->dirty_ring);
  if (cleared) vm_request_all(vm, NULL, REQ_TLB_FLUSH, true);
  pthread_mutex_unlock(&vm->slots_lock);
  return (int)cleared;
}
