/* The x86 architecture's operations table and the making and ending of its VMs and vCPUs. */
#include <errno.h>
#include <stdlib.h>
#include <urcu-bp.h>
#include "core/memslot.h"
#include "x86/irqchip/lapic.h"
#include "x86/api/api.h"
#include "x86/block.h"
#include "x86/mmu/access.h"
#include "x86/run.h"
#include "x86/translate/code.h"
#include "x86/x86.h"

static int vm_create_x86(struct vm *v, unsigned long type) {
  if (type) return -EINVAL; /* KVM_X86_DEFAULT_VM is the only type of 6.1 */
  struct x86_vm *vm = x86_vm(v);
  int r = x86_blocks_create(vm);
  if (!r) r = x86_code_create(vm);
  if (!r) r = x86_vm_clock_create(vm);
  if (!r) r = x86_idle_create(vm);
  if (!r) return 0;
  x86_vm_clock_destroy(vm);
  x86_blocks_destroy(vm);
  x86_code_destroy(vm);
  return r;
}

static void vm_destroy_x86(struct vm *v) {
  struct x86_vm *vm = x86_vm(v);
  x86_idle_destroy(vm);
  x86_pit_destroy(vm);
  x86_irqchip_destroy(vm);
  x86_vm_clock_destroy(vm);
  x86_msr_filter_destroy(vm);
  x86_pmu_filter_destroy(vm);
  x86_blocks_destroy(vm);
  x86_code_destroy(vm);
}

static void vcpu_destroy_x86(struct vcpu *v) {
  struct x86_vcpu *c = x86_vcpu(v);
  x86_lapic_destroy(c);
  x86_pv_destroy(c);
  x86_msr_destroy(c);
  x86_pmu_destroy(c);
  x86_cpuid_destroy(c);
  x86_mmu_destroy(c);
  free(c->jcache);
}

static int vcpu_create_x86(struct vcpu *v) {
  struct x86_vcpu *c = x86_vcpu(v);
  c->jcache = calloc(1u << X86_JCACHE_BITS, sizeof(*c->jcache));
  if (!c->jcache) return -ENOMEM;
  int r = x86_cpuid_create(c);
  if (!r) r = x86_mmu_create(c);
  if (!r) r = x86_pmu_create(c);
  if (!r) r = x86_msr_create(c);
  if (!r) r = x86_pv_create(c);
  if (!r) r = x86_lapic_create(c);
  if (r) {
    vcpu_destroy_x86(v);
    return r;
  }
  x86_code_vcpu_init(c);
  x86_reset(c, false);
  bool boot = v->id == x86_vm_of(c)->boot_cpu_id;
  c->mp_state = c->lapic && !boot ? KVM_MP_STATE_UNINITIALIZED : KVM_MP_STATE_RUNNABLE;
  return 0;
}

static bool vcpu_runnable_x86(struct vcpu *v) { return x86_runnable(x86_vcpu(v)); }

static void vcpu_sleeps_x86(struct vcpu *v) {
  struct x86_vcpu *c = x86_vcpu(v);
  if (c->lapic) lapic_timer_sleeps(c->lapic);
}

/* Blocks hold host addresses of the slots they were decoded from, so any change of place drops them.  Flag changes do not move memory. */
static void slot_commit_x86(struct vm *v, const struct memslot *old, const struct memslot *new, enum slot_change change) {
  if (change == SLOT_DELETE || change == SLOT_MOVE) x86_blocks_flush(x86_vm(v));
}

static int slot_prepare_x86(struct vm *v, const struct memslot *old, struct memslot *new, enum slot_change change) { return 0; }

static void memory_written_x86(struct vm *v, const void *host, size_t len) {
  const char *at = host;
  for (size_t done = 0, n; done < len; done += n) {
    n = MIN(len - done, (size_t)(PAGE_SIZE - ((uintptr_t)(at + done) & (PAGE_SIZE - 1))));
    if (x86_page_has_code(v, at + done)) x86_blocks_written(x86_vm(v), at + done, (unsigned)n);
  }
}

static bool irqchip_present_x86(struct vm *v) { return x86_vm(v)->irqchip != NULL; }

const struct arch_ops x86_arch = {
    .name = "x86",
    .vm_size = sizeof(struct x86_vm),
    .vcpu_size = sizeof(struct x86_vcpu),
    .max_vcpus = 1024,
    .max_vcpu_id = 4096,
    .address_spaces = 2,
    .irq_pins = 1024,
    .check_extension = x86_check_extension,
    .system_ioctls = x86_system_ioctls,
    .vm_ioctls = x86_vm_ioctls,
    .vcpu_ioctls = x86_vcpu_ioctls,
    .n_system_ioctls = X86_N_SYSTEM_IOCTLS,
    .n_vm_ioctls = X86_N_VM_IOCTLS,
    .n_vcpu_ioctls = X86_N_VCPU_IOCTLS,
    .vm_enable_cap = x86_vm_enable_cap,
    .vcpu_enable_cap = x86_vcpu_enable_cap,
    .vm_create = vm_create_x86,
    .vm_destroy = vm_destroy_x86,
    .vcpu_create = vcpu_create_x86,
    .vcpu_destroy = vcpu_destroy_x86,
    .vcpu_run = x86_vcpu_run,
    .vcpu_complete_io = x86_vcpu_complete_io,
    .vcpu_runnable = vcpu_runnable_x86,
    .vcpu_sleeps = vcpu_sleeps_x86,
    .slot_prepare = slot_prepare_x86,
    .slot_commit = slot_commit_x86,
    .memory_written = memory_written_x86,
    .route_set = x86_route_set,
    .routes_changed = x86_routes_changed,
    .irqchip_present = irqchip_present_x86,
    .irqfd_allowed = x86_irqfd_allowed,
};
