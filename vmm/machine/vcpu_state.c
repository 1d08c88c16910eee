/* A vCPU's power-on state, its snapshot for resets, and the entry state of the boot protocol. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/machine/machine_priv.h"

enum {
  MSR_TSC = 0x10,
  MSR_TSC_ADJUST = 0x3b,
  MSR_MTRR_CAP = 0xfe,
  MSR_MISC_ENABLE = 0x1a0,
  MSR_MTRR_BASE0 = 0x200,
  MSR_MTRR_MASK0 = 0x201,
  MSR_MTRR_DEF_TYPE = 0x2ff
};
enum { LVT_LINT0 = 0x350, LVT_LINT1 = 0x360, LVT_EXTINT = 0x700, LVT_NMI = 0x400 };
enum { CR0_PE = 1, CR0_ET = 1 << 4, CR0_NE = 1 << 5, CR0_PG = 1u << 31, CR4_PAE = 1 << 5, EFER_LME = 1 << 8, EFER_LMA = 1 << 10 };

struct vcpu_snapshot {
  struct kvm_regs regs;
  struct kvm_sregs sregs;
  struct kvm_xsave xsave;
  struct kvm_xcrs xcrs;
  struct kvm_debugregs debugregs;
  struct kvm_vcpu_events events;
  struct kvm_lapic_state lapic;
  struct kvm_mp_state mp_state;
  struct kvm_msrs *msrs; /* all that the accelerator can save and the VMM may put back */
};

/* The parts of the state, in the order in which they are put back: control registers (and the APIC's base and mode) before what
 * depends on them; events, which name a pending interrupt, after the registers; the run state last. */
static const struct part {
  const char *name;
  unsigned long get, set;
  size_t offset;
  int cap; /* 0: always there */
} parts[] = {
    {"special registers", KVM_GET_SREGS, KVM_SET_SREGS, offsetof(struct vcpu_snapshot, sregs), 0},
    {"XCR0", KVM_GET_XCRS, KVM_SET_XCRS, offsetof(struct vcpu_snapshot, xcrs), KVM_CAP_XCRS},
    {"extended state", KVM_GET_XSAVE, KVM_SET_XSAVE, offsetof(struct vcpu_snapshot, xsave), 0},
    {"local APIC", KVM_GET_LAPIC, KVM_SET_LAPIC, offsetof(struct vcpu_snapshot, lapic), 0},
    {"registers", KVM_GET_REGS, KVM_SET_REGS, offsetof(struct vcpu_snapshot, regs), 0},
    {"debug registers", KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, offsetof(struct vcpu_snapshot, debugregs), KVM_CAP_DEBUGREGS},
    {"events", KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, offsetof(struct vcpu_snapshot, events), KVM_CAP_VCPU_EVENTS},
    {"run state", KVM_GET_MP_STATE, KVM_SET_MP_STATE, offsetof(struct vcpu_snapshot, mp_state), 0},
};
enum { PARTS = sizeof(parts) / sizeof(parts[0]), MSRS_AFTER = 2 /* XSAVE; IA32_XSS and the deadline come before the APIC */ };

static bool part_exists(struct vcpu *vcpu, const struct part *p) {
  struct vmm *vmm = vcpu->vmm;
  return p->cap == 0 || vmm->accel->ioctl(vmm->kvm_fd, KVM_CHECK_EXTENSION, (void *)(intptr_t)p->cap) > 0;
}

int vcpu_ioctl(struct vcpu *vcpu, unsigned long request, void *arg) {
  return vcpu->vmm->accel->ioctl(vcpu->fd, request, arg);
}

/* ---- MSRs ---- */

static bool set_msr(struct vcpu *vcpu, uint32_t index, uint64_t value) {
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry entry;
  } m = {.head = {.nmsrs = 1}, .entry = {.index = index, .data = value}};
  return vcpu_ioctl(vcpu, KVM_SET_MSRS, &m) == 1;
}

static bool get_msr(struct vcpu *vcpu, uint32_t index, uint64_t *value) {
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry entry;
  } m = {.head = {.nmsrs = 1}, .entry = {.index = index}};
  if (vcpu_ioctl(vcpu, KVM_GET_MSRS, &m) != 1) return false;
  *value = m.entry.data;
  return true;
}

static struct kvm_msr_list *msr_list(struct vmm *vmm) {
  struct kvm_msr_list probe = {0}, *list;
  vmm->accel->ioctl(vmm->kvm_fd, KVM_GET_MSR_INDEX_LIST, &probe); /* -E2BIG, and the number */
  list = calloc(1, sizeof(*list) + probe.nmsrs * sizeof(list->indices[0]));
  if (!list) return NULL;
  list->nmsrs = probe.nmsrs;
  if (vmm->accel->ioctl(vmm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list) < 0) list->nmsrs = 0;
  return list;
}

/* The time-stamp counter runs on through a reset: putting the others back must not stop it. */
static bool resettable(uint32_t msr) {
  return msr != MSR_TSC && msr != MSR_TSC_ADJUST;
}

static struct kvm_msrs *save_msrs(struct vcpu *vcpu) {
  struct kvm_msr_list *list = msr_list(vcpu->vmm);
  struct kvm_msrs *msrs = list ? calloc(1, sizeof(*msrs) + list->nmsrs * sizeof(msrs->entries[0])) : NULL;
  for (uint32_t i = 0; msrs && i < list->nmsrs; i++) {
    uint64_t value;
    if (!resettable(list->indices[i]) || !get_msr(vcpu, list->indices[i], &value) || !set_msr(vcpu, list->indices[i], value))
      continue;
    msrs->entries[msrs->nmsrs++] = (struct kvm_msr_entry){.index = list->indices[i], .data = value};
  }
  free(list);
  return msrs;
}

/* KVM_SET_MSRS handles a part of the list when one is refused: go on behind it. */
static void restore_msrs(struct vcpu *vcpu, const struct kvm_msrs *saved) {
  enum { BATCH = 64 };
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[BATCH];
  } m;
  for (uint32_t i = 0; i < saved->nmsrs;) {
    uint32_t n = saved->nmsrs - i < BATCH ? saved->nmsrs - i : BATCH;
    m.head = (struct kvm_msrs){.nmsrs = n};
    memcpy(m.entries, &saved->entries[i], n * sizeof(m.entries[0]));
    int done = vcpu_ioctl(vcpu, KVM_SET_MSRS, &m);
    i += done == (int)n ? n : done > 0 ? (uint32_t)done + 1 : 1;
  }
}

/* What firmware would have set: memory is write-back but for the hole (SDM vol. 3, 12.11), fast strings are on. */
static void firmware_msrs(struct vcpu *vcpu, unsigned phys_bits) {
  uint64_t cap, hole = 0xc0000000, mask = ((1ull << phys_bits) - 1) & ~0x3fffffffull;
  set_msr(vcpu, MSR_MISC_ENABLE, 1);
  if (!get_msr(vcpu, MSR_MTRR_CAP, &cap) || (cap & 0xff) == 0) return;
  if (set_msr(vcpu, MSR_MTRR_BASE0, hole | 0) && set_msr(vcpu, MSR_MTRR_MASK0, mask | 1 << 11))
    set_msr(vcpu, MSR_MTRR_DEF_TYPE, 1 << 11 | 6);
}

/* ---- power-on ---- */

/* Virtual wire mode: the PICs interrupt through LINT0, NMI comes through LINT1 (MP spec 1.4, 3.6.2.2). */
static int wire_lints(struct vcpu *vcpu) {
  struct kvm_lapic_state apic;
  int r = vcpu_ioctl(vcpu, KVM_GET_LAPIC, &apic);
  if (r < 0) return r;
  const uint32_t extint = LVT_EXTINT, nmi = LVT_NMI;
  if (vcpu->index == 0) memcpy(apic.regs + LVT_LINT0, &extint, 4);
  memcpy(apic.regs + LVT_LINT1, &nmi, 4);
  return vcpu_ioctl(vcpu, KVM_SET_LAPIC, &apic);
}

static int take_snapshot(struct vcpu *vcpu, char *err) {
  struct vcpu_snapshot *s = vcpu->power_on = calloc(1, sizeof(*s));
  if (!s) return machine_fail(err, "out of memory");
  for (int i = 0; i < PARTS; i++) {
    int r = part_exists(vcpu, &parts[i]) ? vcpu_ioctl(vcpu, parts[i].get, (char *)s + parts[i].offset) : 0;
    if (r < 0) return machine_fail(err, "the %s of a vCPU cannot be read: %s", parts[i].name, strerror(-r));
  }
  s->msrs = save_msrs(vcpu);
  return s->msrs ? 0 : machine_fail(err, "out of memory");
}

int vcpu_power_on(struct vcpu *vcpu, unsigned phys_bits, char *err) {
  firmware_msrs(vcpu, phys_bits);
  int r = wire_lints(vcpu);
  if (r < 0) return machine_fail(err, "the local APIC of a vCPU cannot be set: %s", strerror(-r));
  return take_snapshot(vcpu, err);
}

void vcpu_snapshot_free(struct vcpu_snapshot *snapshot) {
  if (snapshot) free(snapshot->msrs);
  free(snapshot);
}

/* ---- entry ---- */

static struct kvm_segment segment(uint16_t selector, bool code, bool is64) {
  return (struct kvm_segment){.limit = 0xffffffff,
                              .selector = selector,
                              .type = code ? 0xb : 0x3,
                              .present = 1,
                              .s = 1,
                              .g = 1,
                              .db = !(code && is64),
                              .l = code && is64};
}

static void enter_sregs(const struct boot_entry *e, struct kvm_sregs *s) {
  bool is64 = e->mode == BOOT_LONG64;
  s->cs = segment(e->cs, true, is64);
  s->ds = s->es = s->fs = s->gs = s->ss = segment(e->ds, false, is64);
  s->tr = (struct kvm_segment){.limit = 0x67, .selector = e->tr, .type = 0xb, .present = 1};
  s->ldt = (struct kvm_segment){.unusable = 1, .type = 2};
  s->gdt = (struct kvm_dtable){.base = e->gdt, .limit = e->gdt_limit};
  s->idt = (struct kvm_dtable){.limit = 0};
  s->cr0 = CR0_PE | CR0_ET | (is64 ? CR0_NE | CR0_PG : 0);
  s->cr3 = is64 ? e->cr3 : 0;
  s->cr4 = is64 ? CR4_PAE : 0;
  s->efer = is64 ? EFER_LME | EFER_LMA : 0;
}

static void enter_regs(const struct boot_entry *e, struct kvm_regs *r) {
  *r = (struct kvm_regs){.rip = e->rip, .rsp = e->rsp, .rax = e->rax, .rbx = e->rbx, .rsi = e->rsi, .rflags = 2};
}

int vcpu_reset(struct vcpu *vcpu) {
  struct vcpu_snapshot state = *vcpu->power_on;
  if (vcpu->index == 0) {
    enter_sregs(&vcpu->vmm->entry, &state.sregs);
    enter_regs(&vcpu->vmm->entry, &state.regs);
  }
  for (int i = 0; i < PARTS; i++) {
    int r = part_exists(vcpu, &parts[i]) ? vcpu_ioctl(vcpu, parts[i].set, (char *)&state + parts[i].offset) : 0;
    if (r < 0) return r;
    if (i == MSRS_AFTER) restore_msrs(vcpu, state.msrs);
  }
  return 0;
}
