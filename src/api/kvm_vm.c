/* Neutral ioctls of a VM descriptor. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "api/dispatch.h"
#include "core/dirty.h"
#include "core/eventfd.h"
#include "core/memslot.h"
#include "core/route.h"

static long extension(struct ioctl_ctx *c, void *data) { return check_extension(c->vm->arch, c->vm, (long)c->value); }
static long set_region(struct ioctl_ctx *c, void *data) { return vm_set_memory_region(c->vm, data); }
static long get_dirty(struct ioctl_ctx *c, void *data) { return vm_get_dirty_log(c->vm, data); }
static long clear_dirty(struct ioctl_ctx *c, void *data) { return vm_clear_dirty_log(c->vm, data); }
static long irqfd(struct ioctl_ctx *c, void *data) { return vm_irqfd(c->vm, data); }
static long ioeventfd(struct ioctl_ctx *c, void *data) { return vm_ioeventfd(c->vm, data); }
static long register_coalesced(struct ioctl_ctx *c, void *data) { return vm_register_coalesced(c->vm, data); }
static long unregister_coalesced(struct ioctl_ctx *c, void *data) { return vm_unregister_coalesced(c->vm, data); }

static long create_vcpu(struct ioctl_ctx *c, void *data) {
  struct vcpu *v;
  if (c->value > ~0u) return -EINVAL;
  int r = vcpu_create(c->vm, (u32)c->value, &v);
  if (r) return r;
  r = fd_install(v->fd, &(struct fd_object){.kind = FD_VCPU, .arch = c->vm->arch, .vcpu = v});
  return r ? r : v->fd;
}

static long irq_line_status(struct ioctl_ctx *c, void *data) {
  struct kvm_irq_level *l = data;
  if (!c->vm->arch->irqchip_present(c->vm)) return -ENXIO;
  l->status = (u32)vm_set_irq(c->vm, 0, l->irq, (int)l->level, true);
  return 0;
}

static long irq_line(struct ioctl_ctx *c, void *data) { return irq_line_status(c, data); }

static long set_routing(struct ioctl_ctx *c, void *data) {
  const struct kvm_irq_routing *head = data;
  if (!c->vm->arch->irqchip_present(c->vm) || head->nr > 4096 || head->flags) return -EINVAL;
  size_t size = head->nr * sizeof(head->entries[0]);
  struct kvm_irq_routing_entry *e = malloc(size + 1);
  if (!e) return -ENOMEM;
  long r = copy_from_user(e, (u8 *)c->user + sizeof(*head), size);
  if (!r) r = vm_set_routing(c->vm, e, head->nr, head->flags);
  free(e);
  return r;
}

static long signal_msi(struct ioctl_ctx *c, void *data) {
  const struct kvm_msi *m = data;
  if (!c->vm->arch->irqchip_present(c->vm) || m->flags) return -EINVAL;
  struct kvm_irq_routing_entry ue = {.type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = m->address_lo, .address_hi = m->address_hi, .data = m->data}};
  struct irq_route_entry e = {.type = KVM_IRQ_ROUTING_MSI};
  int r = c->vm->arch->route_set(c->vm, &e, &ue);
  return r ? r : e.set(&e, c->vm, 0, 1, false);
}

static long enable_cap(struct ioctl_ctx *c, void *data) {
  const struct kvm_enable_cap *cap = data;
  if (cap->cap == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) {
    u64 v = cap->args[0];
    if (cap->flags || (v & ~3ull) || v == KVM_DIRTY_LOG_INITIALLY_SET) return -EINVAL;
    c->vm->dirty_flags = v;
    return 0;
  }
  return c->vm->arch->vm_enable_cap(c->vm, cap->cap, cap->flags, (const u64 *)cap->args);
}

#define ROW(req, kind, lock, handler) {.request = req, .name = #req, .arg = kind, .locks = lock, .fn = handler}
const struct ioctl_row vm_rows[] = {
    ROW(KVM_CHECK_EXTENSION, ARG_VALUE, LOCK_NONE, extension),
    ROW(KVM_CREATE_VCPU, ARG_VALUE, LOCK_NONE, create_vcpu),
    ROW(KVM_SET_USER_MEMORY_REGION, ARG_IN, LOCK_NONE, set_region),
    ROW(KVM_GET_DIRTY_LOG, ARG_IN, LOCK_NONE, get_dirty),
    ROW(KVM_CLEAR_DIRTY_LOG, ARG_IN, LOCK_NONE, clear_dirty),
    ROW(KVM_IRQFD, ARG_IN, LOCK_NONE, irqfd),
    ROW(KVM_IOEVENTFD, ARG_IN, LOCK_NONE, ioeventfd),
    ROW(KVM_IRQ_LINE, ARG_IN, LOCK_NONE, irq_line),
    ROW(KVM_IRQ_LINE_STATUS, ARG_INOUT, LOCK_NONE, irq_line_status),
    ROW(KVM_SET_GSI_ROUTING, ARG_IN, LOCK_NONE, set_routing),
    ROW(KVM_SIGNAL_MSI, ARG_IN, LOCK_NONE, signal_msi),
    ROW(KVM_REGISTER_COALESCED_MMIO, ARG_IN, LOCK_NONE, register_coalesced),
    ROW(KVM_UNREGISTER_COALESCED_MMIO, ARG_IN, LOCK_NONE, unregister_coalesced),
    ROW(KVM_ENABLE_CAP, ARG_IN, LOCK_NONE, enable_cap),
};
const unsigned n_vm_rows = ARRAY_SIZE(vm_rows);
