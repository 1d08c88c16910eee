/* Guest-physical copies for chips and paravirtual interfaces. */
#include <errno.h>
#include <string.h>
#include <urcu-bp.h>
#include "base/fault.h"
#include "core/memslot.h"

static int copy_page(struct vm *vm, gpa_t gpa, void *data, size_t len, bool write) {
  const struct memslot *slot = memslot_find(rcu_dereference(vm->slots[0]), gpa >> PAGE_SHIFT);
  if (!slot || (write && (slot->flags & KVM_MEM_READONLY))) return -EFAULT;
  void *host = (void *)(uintptr_t)(memslot_hva(slot, gpa >> PAGE_SHIFT) + (gpa & (PAGE_SIZE - 1)));
  struct fault_guard guard;
  if (fault_try(&guard)) return -EFAULT;
  memcpy(write ? host : data, write ? data : host, len);
  fault_end(&guard);
  if (write) mark_page_dirty(vm, NULL, slot, gpa >> PAGE_SHIFT);
  return 0;
}

static int copy_all(struct vm *vm, gpa_t gpa, u8 *data, size_t len, bool write) {
  int r = 0;
  rcu_read_lock();
  while (!r && len) {
    size_t n = MIN(len, (size_t)(PAGE_SIZE - (gpa & (PAGE_SIZE - 1))));
    r = copy_page(vm, gpa, data, n, write);
    gpa += n;
    data += n;
    len -= n;
  }
  rcu_read_unlock();
  return r;
}

int vm_read_gpa(struct vm *vm, gpa_t gpa, void *data, size_t len) { return copy_all(vm, gpa, data, len, false); }

int vm_write_gpa(struct vm *vm, gpa_t gpa, const void *data, size_t len) {
  int r = copy_all(vm, gpa, (u8 *)(uintptr_t)data, len, true);
  atomic_fetch_add_explicit(&vm->write_epoch, 1, memory_order_release);
  return r;
}
