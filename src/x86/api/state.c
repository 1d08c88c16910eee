/* Register state of a vCPU, as user space reads and writes it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/fault.h"
#include "x86/api/api.h"
#include "x86/cpu/cr.h"
#include "x86/cpuid/cpuid.h"
#include "x86/exec/xstate.h"
#include "x86/mmu/access.h"

#define RESET_RIP 0xfff0u

/* Runs fn where it may touch guest memory.  False: a host fault on that memory. */
static bool with_memory(struct x86_vcpu *c, void (*fn)(struct x86_vcpu *c, void *arg), void *arg) {
  struct fault_guard guard;
  bool ok = true;
  vcpu_enter(&c->core);
  if (!fault_try(&guard)) {
    fn(c, arg);
    fault_end(&guard);
  } else {
    ok = false;
  }
  vcpu_leave(&c->core);
  return ok;
}

/* ---- general registers ---- */

/* struct kvm_regs is 18 words: these registers, then RIP and RFLAGS. */
static const u8 regs_order[] = {RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8, R9, R10, R11, R12, R13, R14, R15, X86_REG_RIP};
enum { WORD_RFLAGS = ARRAY_SIZE(regs_order), WORDS };
_Static_assert(sizeof(struct kvm_regs) == WORDS * sizeof(u64), "struct kvm_regs");

void x86_get_regs(struct x86_vcpu *c, struct kvm_regs *r) {
  u64 v[WORDS];
  for (unsigned k = 0; k < ARRAY_SIZE(regs_order); k++) v[k] = c->regs[regs_order[k]];
  v[WORD_RFLAGS] = c->rflags;
  memcpy(r, v, sizeof(v));
}

void x86_set_regs(struct x86_vcpu *c, const struct kvm_regs *r) {
  u64 v[WORDS];
  memcpy(v, r, sizeof(v));
  for (unsigned k = 0; k < ARRAY_SIZE(regs_order); k++) c->regs[regs_order[k]] = v[k];
  c->rflags = v[WORD_RFLAGS] | 2;
  c->exception.pending = false;
  x86_mode_changed(c);
  x86_mmu_rights_changed(c);
  x86_request_event(c);
}

long x86_ioctl_get_regs(struct ioctl_ctx *ctx, void *data) {
  x86_get_regs(x86_vcpu(ctx->vcpu), data);
  return 0;
}

long x86_ioctl_set_regs(struct ioctl_ctx *ctx, void *data) {
  x86_set_regs(x86_vcpu(ctx->vcpu), data);
  return 0;
}

/* ---- special registers ---- */

static struct kvm_segment to_kvm(const struct x86_seg *s) {
  return (struct kvm_segment){.base = s->base,
                              .limit = s->limit,
                              .selector = s->sel,
                              .type = s->type,
                              .present = s->present,
                              .dpl = s->dpl,
                              .db = s->db,
                              .s = s->s,
                              .l = s->l,
                              .g = s->g,
                              .avl = s->avl,
                              .unusable = s->unusable};
}

static void from_kvm(struct x86_seg *s, const struct kvm_segment *k) {
  *s = (struct x86_seg){.base = k->base,
                        .limit = k->limit,
                        .sel = k->selector,
                        .type = k->type & 15,
                        .s = k->s & 1,
                        .dpl = k->dpl & 3,
                        .present = k->present & 1,
                        .avl = k->avl & 1,
                        .l = k->l & 1,
                        .db = k->db & 1,
                        .g = k->g & 1,
                        .unusable = k->unusable || !k->present};
  x86_seg_update(s);
}

/* struct kvm_sregs and kvm_sregs2 begin alike, up to apic_base. */
_Static_assert(offsetof(struct kvm_sregs, interrupt_bitmap) == offsetof(struct kvm_sregs2, flags), "common part of sregs");

static void get_common(struct x86_vcpu *c, struct kvm_sregs *s) {
  struct kvm_segment *const out[6] = {&s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs};
  for (unsigned k = 0; k < 6; k++) *out[k] = to_kvm(&c->seg[k]);
  s->tr = to_kvm(&c->tr);
  s->ldt = to_kvm(&c->ldtr);
  s->gdt = (struct kvm_dtable){.base = c->gdtr.base, .limit = c->gdtr.limit};
  s->idt = (struct kvm_dtable){.base = c->idtr.base, .limit = c->idtr.limit};
  s->cr0 = c->cr0, s->cr2 = c->cr2, s->cr3 = c->cr3, s->cr4 = c->cr4;
  s->cr8 = x86_get_cr8(c);
  s->efer = c->efer;
  s->apic_base = c->apic_base;
}

void x86_get_sregs(struct x86_vcpu *c, struct kvm_sregs *s) {
  memset(s, 0, sizeof(*s));
  get_common(c, s);
  if (c->interrupt.injected && !c->interrupt.soft) s->interrupt_bitmap[c->interrupt.nr / 64] |= BIT(c->interrupt.nr % 64);
}

/* Control registers that contradict one another (SDM Vol. 3A 4.1.1, 9.8.5). */
static bool sregs_valid(const struct x86_vcpu *c, const struct kvm_sregs *s) {
  if ((s->efer & EFER_LME) && (s->cr0 & CR0_PG)) {
    if (!(s->cr4 & CR4_PAE) || !(s->efer & EFER_LMA)) return false;
    if (c->cpuid->maxphyaddr < 64 && s->cr3 >> c->cpuid->maxphyaddr) return false;
  } else if ((s->efer & EFER_LMA) || s->cs.l) {
    return false;
  }
  return x86_cr0_bits_valid(s->cr0) && x86_cr4_bits_valid(c, s->cr4);
}

static bool pae_paging(const struct x86_vcpu *c) {
  return (c->cr0 & CR0_PG) && (c->cr4 & CR4_PAE) && !(c->efer & EFER_LMA);
}

/* A failure leaves the entries as they were: user space may not have set up memory yet. */
static void reload_pdptrs(struct x86_vcpu *c, void *arg) {
  x86_mmu_load_pdptrs(c, c->cr3);
}

/* Old clients do not wake the boot processor after a reset. */
static bool is_boot_state(struct x86_vcpu *c) {
  const struct x86_seg *cs = &c->seg[SEG_CS];
  return c->core.id == x86_vm_of(c)->boot_cpu_id && c->rip == RESET_RIP && cs->sel == 0xf000 && cs->base == 0xffff0000u &&
         !(c->cr0 & CR0_PE);
}

static int set_common(struct x86_vcpu *c, const struct kvm_sregs *s, const u64 *pdptrs) {
  const struct kvm_segment *const in[6] = {&s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs};
  if (!sregs_valid(c, s) || x86_apic_base_write(c, s->apic_base, true)) return -EINVAL;
  c->gdtr.base = s->gdt.base, c->gdtr.limit = s->gdt.limit;
  c->idtr.base = s->idt.base, c->idtr.limit = s->idt.limit;
  c->cr2 = s->cr2;
  c->cr3 = s->cr3;
  x86_set_cr8(c, s->cr8 & 0xf);
  c->efer = s->efer;
  c->cr0 = s->cr0;
  u64 changed = c->cr4 ^ s->cr4;
  c->cr4 = s->cr4;
  x86_cpuid_cr4_changed(c, changed);
  for (unsigned k = 0; k < 6; k++) from_kvm(&c->seg[k], in[k]);
  from_kvm(&c->tr, &s->tr);
  from_kvm(&c->ldtr, &s->ldt);
  x86_mmu_mode_changed(c);
  if (pdptrs)
    memcpy(c->pdptr, pdptrs, sizeof(c->pdptr));
  else if (pae_paging(c))
    with_memory(c, reload_pdptrs, NULL);
  x86_mode_changed(c);
  x86_mmu_rights_changed(c);
  if (is_boot_state(c)) c->mp_state = KVM_MP_STATE_RUNNABLE;
  return 0;
}

int x86_set_sregs(struct x86_vcpu *c, const struct kvm_sregs *s) {
  int r = set_common(c, s, NULL);
  if (r) return r;
  for (unsigned k = 0; k < 4; k++) {
    if (!s->interrupt_bitmap[k]) continue;
    c->interrupt.injected = true;
    c->interrupt.soft = false;
    c->interrupt.nr = (u8)(k * 64 + (unsigned)__builtin_ctzll(s->interrupt_bitmap[k]));
    x86_request_event(c);
    break;
  }
  return 0;
}

long x86_ioctl_get_sregs(struct ioctl_ctx *ctx, void *data) {
  x86_get_sregs(x86_vcpu(ctx->vcpu), data);
  return 0;
}

long x86_ioctl_set_sregs(struct ioctl_ctx *ctx, void *data) {
  return x86_set_sregs(x86_vcpu(ctx->vcpu), data);
}

long x86_ioctl_get_sregs2(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  struct kvm_sregs common = {0};
  struct kvm_sregs2 *s = data;
  get_common(c, &common);
  memcpy(s, &common, offsetof(struct kvm_sregs2, flags));
  if (pae_paging(c)) {
    s->flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
    memcpy(s->pdptrs, c->pdptr, sizeof(s->pdptrs));
  }
  return 0;
}

long x86_ioctl_set_sregs2(struct ioctl_ctx *ctx, void *data) {
  const struct kvm_sregs2 *s = data;
  struct kvm_sregs common = {0};
  bool valid = s->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID, pae = (s->cr0 & CR0_PG) && (s->cr4 & CR4_PAE) && !(s->efer & EFER_LMA);
  if ((s->flags & ~(u64)KVM_SREGS2_FLAGS_PDPTRS_VALID) || (valid && !pae)) return -EINVAL;
  memcpy(&common, s, offsetof(struct kvm_sregs2, flags));
  u64 pdptrs[4];
  memcpy(pdptrs, s->pdptrs, sizeof(pdptrs));
  return set_common(x86_vcpu(ctx->vcpu), &common, valid ? pdptrs : NULL);
}

/* ---- extended state ---- */

#define X87_SSE 3ull /* XCR0: components that exist on every processor */

long x86_ioctl_get_fpu(struct ioctl_ctx *ctx, void *data) {
  const struct x86_fpu *f = &x86_vcpu(ctx->vcpu)->fpu;
  struct kvm_fpu *u = data;
  memcpy(&u->fcw, f->fx, 2);
  memcpy(&u->fsw, f->fx + 2, 2);
  u->ftwx = f->fx[4];
  memcpy(&u->last_opcode, f->fx + 6, 2);
  memcpy(&u->last_ip, f->fx + 8, 8);
  memcpy(&u->last_dp, f->fx + 16, 8);
  memcpy(u->fpr, f->fx + 32, sizeof(u->fpr));
  for (unsigned k = 0; k < 16; k++) memcpy(u->xmm[k], f->zmm[k], 16);
  return 0;
}

/* MXCSR is not part of what KVM_SET_FPU sets. */
long x86_ioctl_set_fpu(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  struct x86_fpu *f = &c->fpu;
  const struct kvm_fpu *u = data;
  memcpy(f->fx, &u->fcw, 2);
  memcpy(f->fx + 2, &u->fsw, 2);
  f->fx[4] = u->ftwx;
  memcpy(f->fx + 6, &u->last_opcode, 2);
  memcpy(f->fx + 8, &u->last_ip, 8);
  memcpy(f->fx + 16, &u->last_dp, 8);
  memcpy(f->fx + 32, u->fpr, sizeof(u->fpr));
  for (unsigned k = 0; k < 16; k++) memcpy(f->zmm[k], u->xmm[k], 16);
  x86_x87_sanitize(c); /* a status word that hides an unmasked exception would raise it in the host */
  return 0;
}

static size_t xsave_size(void) {
  return MAX(x86_xsave_size(x86_xcr0_supported()), sizeof(struct kvm_xsave));
}

long x86_ioctl_get_xsave(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  if (xsave_size() > sizeof(struct kvm_xsave)) return -EINVAL;
  x86_fpu_to_xsave(c, data, sizeof(struct kvm_xsave), x86_cpuid_xcr0(c) | X87_SSE);
  return 0;
}

long x86_ioctl_get_xsave2(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  size_t size = xsave_size();
  void *area = calloc(1, size);
  if (!area) return -ENOMEM;
  x86_fpu_to_xsave(c, area, size, x86_cpuid_xcr0(c) | X87_SSE);
  int r = copy_to_user(ctx->user, area, size);
  free(area);
  return r;
}

long x86_ioctl_set_xsave(struct ioctl_ctx *ctx, void *data) {
  size_t size = xsave_size();
  void *area = malloc(size);
  if (!area) return -ENOMEM;
  int r = copy_from_user(area, ctx->user, size);
  u32 pkru = x86_vcpu(ctx->vcpu)->pkru;
  if (!r) r = x86_fpu_from_xsave(x86_vcpu(ctx->vcpu), area, size);
  if (!r && pkru != x86_vcpu(ctx->vcpu)->pkru) x86_mmu_flush_all(x86_vcpu(ctx->vcpu), true);
  free(area);
  return r;
}

long x86_ioctl_get_xcrs(struct ioctl_ctx *ctx, void *data) {
  struct kvm_xcrs *x = data;
  x->nr_xcrs = 1;
  x->xcrs[0].xcr = 0;
  x->xcrs[0].value = x86_vcpu(ctx->vcpu)->xcr0;
  return 0;
}

long x86_ioctl_set_xcrs(struct ioctl_ctx *ctx, void *data) {
  const struct kvm_xcrs *x = data;
  if (x->nr_xcrs > KVM_MAX_XCRS || x->flags) return -EINVAL;
  for (u32 k = 0; k < x->nr_xcrs; k++)
    if (x->xcrs[k].xcr == 0) return x86_set_xcr0(x86_vcpu(ctx->vcpu), x->xcrs[k].value) ? -EINVAL : 0;
  return 0;
}

/* ---- translation ---- */

static void translate(struct x86_vcpu *c, void *arg) {
  struct kvm_translation *t = arg;
  struct x86_walk w;
  if (x86_walk_page(c, t->linear_address, ACC_READ, false, true, false, &w)) return;
  t->physical_address = w.gpa;
  t->valid = 1;
}

long x86_ioctl_translate(struct ioctl_ctx *ctx, void *data) {
  struct kvm_translation *t = data;
  struct x86_fault fault = x86_vcpu(ctx->vcpu)->fault;
  t->physical_address = ~0ull;
  t->valid = 0;
  t->writeable = 1;
  t->usermode = 0;
  with_memory(x86_vcpu(ctx->vcpu), translate, t);
  x86_vcpu(ctx->vcpu)->fault = fault;
  return 0;
}
