/* What KVM_RUN came back for: one row per exit reason (api.rst, "The kvm_run structure"). */
#include <stdio.h>
#include <string.h>

#include "vmm/machine/machine_priv.h"

static void exit_io(struct vcpu *vcpu) {
  struct kvm_run *run = vcpu->run;
  uint8_t *data = (uint8_t *)run + run->io.data_offset;
  for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size)
    vmm_pio_access(vcpu->vmm, run->io.port, data, run->io.size, run->io.direction == KVM_EXIT_IO_OUT);
}

static void exit_mmio(struct vcpu *vcpu) {
  struct kvm_run *run = vcpu->run;
  vmm_mmio_access(vcpu->vmm, run->mmio.phys_addr, run->mmio.data, run->mmio.len, run->mmio.is_write);
}

static void exit_shutdown(struct vcpu *vcpu) {
  char reason[128];
  struct kvm_regs regs = {0};
  vcpu_ioctl(vcpu, KVM_GET_REGS, &regs);
  snprintf(reason, sizeof(reason), "triple fault on vCPU %u at rip 0x%llx", vcpu->index, (unsigned long long)regs.rip);
  vmm_end(vcpu->vmm, VMM_END_TRIPLE_FAULT, reason);
}

/* The bytes of the instruction that KVM could not emulate, where it gives them. */
static void append_instruction(const struct kvm_run *run, char *text, size_t room) {
  size_t n = strlen(text);
  if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION || run->emulation_failure.ndata < 3) return;
  if (!(run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) return;
  n += (size_t)snprintf(text + n, room - n, ", instruction");
  for (unsigned i = 0; i < run->emulation_failure.insn_size && i < 15 && n + 4 < room; i++)
    n += (size_t)snprintf(text + n, room - n, " %02x", run->emulation_failure.insn_bytes[i]);
}

static void exit_internal_error(struct vcpu *vcpu) {
  char reason[256];
  struct kvm_regs regs = {0};
  struct kvm_sregs sregs = {0};
  vcpu_ioctl(vcpu, KVM_GET_REGS, &regs);
  vcpu_ioctl(vcpu, KVM_GET_SREGS, &sregs);
  snprintf(reason, sizeof(reason), "KVM internal error %u on vCPU %u at cs 0x%x rip 0x%llx cr0 0x%llx efer 0x%llx",
           vcpu->run->internal.suberror, vcpu->index, sregs.cs.selector, (unsigned long long)regs.rip,
           (unsigned long long)sregs.cr0, (unsigned long long)sregs.efer);
  append_instruction(vcpu->run, reason, sizeof(reason));
  vmm_end(vcpu->vmm, VMM_END_INTERNAL, reason);
}

static void exit_fail_entry(struct vcpu *vcpu) {
  char reason[128];
  snprintf(reason, sizeof(reason), "vCPU %u cannot enter the guest: hardware reason 0x%llx", vcpu->index,
           (unsigned long long)vcpu->run->fail_entry.hardware_entry_failure_reason);
  vmm_end(vcpu->vmm, VMM_END_INTERNAL, reason);
}

static void exit_system_event(struct vcpu *vcpu) {
  switch (vcpu->run->system_event.type) {
  case KVM_SYSTEM_EVENT_SHUTDOWN:
    vmm_end(vcpu->vmm, VMM_END_POWEROFF, "the guest switched the machine off");
    break;
  case KVM_SYSTEM_EVENT_RESET:
    vmm_end(vcpu->vmm, VMM_END_RESET, "the guest asked for a reset");
    break;
  case KVM_SYSTEM_EVENT_CRASH:
    vmm_end(vcpu->vmm, VMM_END_PANIC, "the guest's kernel panicked");
    break;
  default:
    break;
  }
}

/* Nothing to do: the loop runs the vCPU again. */
static void exit_ignored(struct vcpu *vcpu) {}

static void (*const handlers[])(struct vcpu *vcpu) = {
    [KVM_EXIT_IO] = exit_io,
    [KVM_EXIT_MMIO] = exit_mmio,
    [KVM_EXIT_INTR] = exit_ignored,
    [KVM_EXIT_IRQ_WINDOW_OPEN] = exit_ignored,
    [KVM_EXIT_HLT] = exit_ignored, /* with the APICs in the kernel a halt does not come here but from KVM_RUN's first return */
    [KVM_EXIT_SHUTDOWN] = exit_shutdown,
    [KVM_EXIT_INTERNAL_ERROR] = exit_internal_error,
    [KVM_EXIT_FAIL_ENTRY] = exit_fail_entry,
    [KVM_EXIT_SYSTEM_EVENT] = exit_system_event,
    [KVM_EXIT_HYPERCALL] = migration_hypercall,
    [KVM_EXIT_X86_RDMSR] = migration_rdmsr,
    [KVM_EXIT_X86_WRMSR] = migration_wrmsr,
};

void vcpu_handle_exit(struct vcpu *vcpu) {
  uint32_t reason = vcpu->run->exit_reason;
  if (reason < sizeof(vcpu->exits) / sizeof(vcpu->exits[0])) vcpu->exits[reason]++;
  if (reason < sizeof(handlers) / sizeof(handlers[0]) && handlers[reason]) {
    handlers[reason](vcpu);
    return;
  }
  char text[64];
  snprintf(text, sizeof(text), "unexpected KVM exit %u on vCPU %u", reason, vcpu->index);
  vmm_end(vcpu->vmm, VMM_END_INTERNAL, text);
}
