/* Power-on and INIT state.
 *
 * Intel SDM Vol. 3A 9.1.1, table 9-1.  Where the manual leaves a choice, what KVM shows after KVM_CREATE_VCPU.
 */
#include <string.h>
#include "x86/cpu/desc.h"
#include "x86/mmu/access.h"
#include "x86/x86.h"

static struct x86_seg real_seg(u16 sel, u64 base, unsigned type, bool s) {
  struct x86_seg seg = {.base = base, .limit = 0xffff, .sel = sel, .type = (u8)type, .s = s, .present = 1};
  x86_seg_update(&seg);
  return seg;
}

static void reset_segments(struct x86_vcpu *c) {
  for (unsigned n = 0; n < 6; n++) c->seg[n] = real_seg(0, 0, 3, true);
  c->seg[SEG_CS] = real_seg(0xf000, 0xffff0000u, 11, true);
  c->ldtr = real_seg(0, 0, SYS_LDT, false);
  c->tr = real_seg(0, 0, SYS_TSS32_BUSY, false);
  c->gdtr.base = c->idtr.base = 0;
  c->gdtr.limit = c->idtr.limit = 0xffff;
}

static void reset_registers(struct x86_vcpu *c) {
  u32 leaf[4] = {0};
  memset(c->regs, 0, sizeof(c->regs));
  x86_cpuid_get(c, 1, 0, leaf);
  c->regs[RDX] = leaf[0] ? leaf[0] : 0x600; /* 9.1.2: family, model, stepping */
  c->rip = 0xfff0;
  c->rflags = 2;
  memset(c->dr, 0, sizeof(c->dr));
  c->dr[6] = 0xffff0ff0u;
  c->dr[7] = 0x400;
}

static void reset_control(struct x86_vcpu *c, bool init) {
  u64 kept = init ? c->cr0 & (CR0_CD | CR0_NW) : CR0_CD | CR0_NW;
  c->cr0 = CR0_ET | kept;
  c->cr2 = c->cr3 = c->cr4 = c->cr8 = 0;
  c->efer = 0;
  memset(c->pdptr, 0, sizeof(c->pdptr));
}

static void reset_events(struct x86_vcpu *c) {
  c->int_shadow = 0;
  c->nmi_blocked = c->nmi_injected = false;
  atomic_store(&c->nmi_pending, 0);
  atomic_store(&c->smi_pending, false);
  memset(&c->exception, 0, sizeof(c->exception));
  memset(&c->interrupt, 0, sizeof(c->interrupt));
  c->triple_fault = false;
  c->pending_dbg = 0;
  c->smm = c->smm_nmi_mask = false;
}

/* What INIT leaves alone. */
static void power_on(struct x86_vcpu *c) {
  c->smbase = 0x30000;
  c->xcr0 = 1;
  c->xss = 0;
  c->pkru = 0;
  c->star = c->lstar = c->cstar = c->sfmask = c->kernel_gs_base = c->tsc_aux = 0;
  c->sysenter_cs = c->sysenter_esp = c->sysenter_eip = 0;
  c->apic_base = 0xfee00000u | (1u << 11) | (c->core.id == x86_vm_of(c)->boot_cpu_id ? 1u << 8 : 0);
  atomic_store(&c->apic_events, 0);
  c->complete_io = NULL;
  memset(&c->io, 0, sizeof(c->io));
  c->stop = 0;
}

void x86_reset(struct x86_vcpu *c, bool init) {
  reset_events(c);
  reset_registers(c);
  reset_segments(c);
  reset_control(c, init);
  if (!init) power_on(c);
  x86_lapic_reset(c, init);
  x86_msr_reset(c, init);
  x86_fpu_reset(c, init);
  if (!init) x86_pv_reset(c);
  if (!init) x86_pmu_reset(c);
  x86_cpuid_runtime_changed(c);
  x86_mmu_mode_changed(c);
  x86_mode_changed(c);
}
