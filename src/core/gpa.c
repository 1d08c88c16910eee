/* Copies to and from guest-physical memory for chips and paravirtual interfaces, from any thread. */
#include <errno.h>
#include "base/fault.h"
#include "base/log.h"
#include "base/rcu.h"
#include "core/memslot.h"

static void mark_range(struct vcpu *vcpu, const struct memslot *slot, gpa_t gpa, size_t len) {
  if (!slot->dirty_bitmap) return;
  for (gfn_t gfn = gpa >> PAGE_SHIFT; gfn <= (gpa + len - 1) >> PAGE_SHIFT; gfn++) mark_page_dirty(vcpu, slot, gfn);
}

/* The part of [gpa, gpa + len) that lies in one slot; written where there is a writer.  Returns its length, or -EFAULT. */
static s64 copy_part(struct vm *vm, struct vcpu *writer, gpa_t gpa, void *data, size_t len) {
  const struct memslot *slot = memslot_find(vm_memslots(vm, 0), gpa >> PAGE_SHIFT);
  if (!slot || (writer && (slot->flags & KVM_MEM_READONLY))) return trace_error(-EFAULT);
  u64 offset = gpa - (slot->base_gfn << PAGE_SHIFT);
  size_t n = MIN(len, (size_t)((slot->npages << PAGE_SHIFT) - offset));
  void *host = (void *)(slot->hva + offset);
  int r = writer ? fault_copy(host, data, n) : fault_copy(data, host, n);
  if (r) return trace_error(r);
  /* Marked after the copy: a log taken in between shows it the next time. */
  if (writer) mark_range(writer, slot, gpa, n);
  if (writer && vm->arch->memory_written)
    vm->arch->memory_written(vm, host, n);
  else if (writer)
    vm_memory_changed(vm);
  return (s64)n;
}

static int copy_gpa(struct vm *vm, struct vcpu *writer, gpa_t gpa, void *data, size_t len) {
  s64 n = 0;
  rcu_read_lock();
  for (size_t done = 0; done < len; done += (size_t)n) {
    n = copy_part(vm, writer, gpa + done, (char *)data + done, len - done);
    if (n < 0) break;
  }
  rcu_read_unlock();
  return n < 0 ? (int)n : 0;
}

int vm_read_gpa(struct vm *vm, gpa_t gpa, void *data, size_t len) { return copy_gpa(vm, NULL, gpa, data, len); }

int vcpu_write_gpa(struct vcpu *vcpu, gpa_t gpa, const void *data, size_t len) {
  return copy_gpa(vcpu->vm, vcpu, gpa, (void *)data, len);
}
