/* Neutral ioctls of a vCPU descriptor (KVM_RUN itself is in dispatch.c). */
#include <errno.h>
#include <string.h>
#include "api/dispatch.h"

static long set_signal_mask(struct ioctl_ctx *c, void *data) {
  struct kvm_signal_mask head;
  u64 bits;
  c->vcpu->sigset_active = false;
  if (!c->user) return 0;
  if (copy_from_user(&head, c->user, sizeof(head))) return -EFAULT;
  if (head.len != sizeof(bits)) return -EINVAL; /* the kernel's sigset_t */
  if (copy_from_user(&bits, (u8 *)c->user + sizeof(head), sizeof(bits))) return -EFAULT;
  sigemptyset(&c->vcpu->sigset);
  memcpy(&c->vcpu->sigset, &bits, sizeof(bits));
  c->vcpu->sigset_active = true;
  return 0;
}

static long enable_cap(struct ioctl_ctx *c, void *data) {
  const struct kvm_enable_cap *cap = data;
  return c->vcpu->vm->arch->vcpu_enable_cap(c->vcpu, cap->cap, cap->flags, (const u64 *)cap->args);
}

#define ROW(req, kind, lock, handler) {.request = req, .name = #req, .arg = kind, .locks = lock, .fn = handler}
const struct ioctl_row vcpu_rows[] = {
    ROW(KVM_SET_SIGNAL_MASK, ARG_USER, LOCK_VCPU, set_signal_mask),
    ROW(KVM_ENABLE_CAP, ARG_IN, LOCK_VCPU, enable_cap),
};
const unsigned n_vcpu_rows = ARRAY_SIZE(vcpu_rows);
