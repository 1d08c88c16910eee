/* System instructions: control and debug registers, MSRs, time, CPUID, halts, hypercalls, translations.
 *
 * Manual: Intel SDM Vol. 2; privilege and order of checks as on the page of each instruction. */
#include "core/stats.h"
#include "x86/cpuid/cpuid.h"
#include "x86/exec/exec.h"
#include "x86/exec/system.h"
#include "x86/msr/msr.h"
#include "x86/pv/pv.h"

#define NEED_CPL0(c)                                                                                                             \
  do {                                                                                                                           \
    if (unlikely((c)->cpl)) return x86_gp0(c);                                                                                   \
  } while (0)

static void put_edx_eax(struct x86_vcpu *c, u64 v) {
  c->regs[RAX] = (u32)v;
  c->regs[RDX] = v >> 32;
}
static u64 edx_eax(const struct x86_vcpu *c) {
  return (u32)c->regs[RAX] | c->regs[RDX] << 32;
}

/* ---- MSRs, time ---- */

static int exec_rdmsr(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  NEED_CPL0(c);
  int r = x86_rdmsr(c, (u32)c->regs[RCX], &v);
  if (likely(!r)) put_edx_eax(c, v);
  return r;
}

static int exec_wrmsr(struct x86_vcpu *c, const struct x86_insn *i) {
  NEED_CPL0(c);
  int r = x86_wrmsr(c, (u32)c->regs[RCX], edx_eax(c));
  return r ? r : X86_END;
}

static bool tsc_refused(const struct x86_vcpu *c) {
  return (c->cr4 & CR4_TSD) && c->cpl;
}

static int exec_rdtsc(struct x86_vcpu *c, const struct x86_insn *i) {
  if (unlikely(tsc_refused(c))) return x86_gp0(c);
  put_edx_eax(c, x86_guest_tsc(c));
  return X86_OK;
}

static int exec_rdtscp(struct x86_vcpu *c, const struct x86_insn *i) {
  if (unlikely(tsc_refused(c))) return x86_gp0(c);
  __builtin_ia32_lfence(); /* earlier loads come first: SDM Vol. 2B, RDTSCP */
  put_edx_eax(c, x86_guest_tsc(c));
  c->regs[RCX] = (u32)c->tsc_aux;
  return X86_OK;
}

static int exec_rdpid(struct x86_vcpu *c, const struct x86_insn *i) {
  c->regs[i->rm] = (u32)c->tsc_aux;
  return X86_OK;
}

static int exec_rdpmc(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 v;
  int r = x86_rdpmc(c, (u32)c->regs[RCX], &v);
  if (!r) put_edx_eax(c, v);
  return r;
}

/* ---- CPUID, hints ---- */

static int exec_cpuid(struct x86_vcpu *c, const struct x86_insn *i) {
  u32 r[4];
  if (unlikely((c->msr->misc_features & 1) && c->cpl)) return x86_gp0(c); /* CPUID faulting: SDM Vol. 4, MSR 140H */
  __builtin_ia32_lfence(); /* a serialising instruction */
  x86_cpuid_get(c, (u32)c->regs[RAX], (u32)c->regs[RCX], r);
  c->regs[RAX] = r[0];
  c->regs[RBX] = r[1];
  c->regs[RCX] = r[2];
  c->regs[RDX] = r[3];
  return X86_OK;
}

static int exec_nop(struct x86_vcpu *c, const struct x86_insn *i) {
  return X86_OK;
}
static int exec_serialize(struct x86_vcpu *c, const struct x86_insn *i) {
  return X86_END;
}
static int exec_cache_flush_all(struct x86_vcpu *c, const struct x86_insn *i) {
  NEED_CPL0(c);
  return X86_OK;
}

/* ---- halt, hypercalls, SMM ---- */

static int exec_hlt(struct x86_vcpu *c, const struct x86_insn *i) {
  NEED_CPL0(c);
  if (likely(!c->core.vm->halt_in_guest)) vcpu_stat_exit(&c->core, halt_exits);
  if (x86_pv_may_halt(c)) {
    c->mp_state = KVM_MP_STATE_HALTED;
    vcpu_request_self(&c->core, BIT(REQ_HALT));
  }
  return X86_END;
}

/* The other vendor's instruction is replaced in place by the guest vendor's and runs again (KVM_X86_QUIRK_FIX_HYPERCALL_INSN), or
 * is #UD. */
static int fix_hypercall(struct x86_vcpu *c, const struct x86_insn *i) {
  static const u8 vmcall[3] = {0x0f, 0x01, 0xc1}, vmmcall[3] = {0x0f, 0x01, 0xd9};
  if (x86_vm_of(c)->disabled_quirks & KVM_X86_QUIRK_FIX_HYPERCALL_INSN) return x86_ud(c);
  u64 ip = x86_insn_ip(c, i) + i->len - sizeof(vmcall); /* behind any prefixes */
  u64 lin = c->code64 ? ip : (u32)(c->seg[SEG_CS].base + ip);
  int r = x86_write_cpl(c, lin, x86_is_amd(c) ? vmmcall : vmcall, sizeof(vmcall), c->cpl);
  return r ? r : X86_RESTART;
}

static int exec_vmcall(struct x86_vcpu *c, const struct x86_insn *i) {
  return x86_is_amd(c) ? fix_hypercall(c, i) : x86_hypercall(c);
}
static int exec_vmmcall(struct x86_vcpu *c, const struct x86_insn *i) {
  return x86_is_amd(c) ? x86_hypercall(c) : fix_hypercall(c, i);
}

/* cpu/: leaves SMM.  X86_BRANCH on success. */
int x86_rsm(struct x86_vcpu *c) __attribute__((weak));
static int exec_rsm(struct x86_vcpu *c, const struct x86_insn *i) {
  return c->smm && x86_rsm ? x86_rsm(c) : x86_ud(c);
}

/* ---- protection keys ---- */

static int exec_rdpkru(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!(c->cr4 & CR4_PKE)) return x86_ud(c);
  if ((u32)c->regs[RCX]) return x86_gp0(c);
  c->regs[RAX] = c->pkru;
  c->regs[RDX] = 0;
  return X86_OK;
}

static int exec_wrpkru(struct x86_vcpu *c, const struct x86_insn *i) {
  if (!(c->cr4 & CR4_PKE)) return x86_ud(c);
  if ((u32)c->regs[RCX] || (u32)c->regs[RDX]) return x86_gp0(c);
  u32 old = c->pkru;
  c->pkru = (u32)c->regs[RAX];
  if (old == c->pkru) return X86_OK;
  x86_mmu_pkru_written(c, old);
  return X86_END;
}

/* ---- translations ---- */

/* The linear address of the operand; no segment checks: the address is not accessed. */
static u64 operand_linear(const struct x86_vcpu *c, const struct x86_insn *i) {
  u64 ea = x86_ea(c, i);
  if (c->code64) return i->seg >= SEG_FS ? ea + c->seg[i->seg].base : ea;
  return (u32)(ea + c->seg[i->seg].base);
}

static int exec_invlpg(struct x86_vcpu *c, const struct x86_insn *i) {
  NEED_CPL0(c);
  u64 lin = operand_linear(c, i);
  if (x86_canonical(c, lin)) x86_mmu_flush_page(c, lin);
  vcpu_stat_inc(&c->core, invlpg);
  return X86_END;
}

enum { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL_GLOBAL, INVPCID_ALL };

/* Only translations of the current PCID are cached, so those of others need no work. */
static int exec_invpcid(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 desc[2], type = c->code64 ? c->regs[i->reg] : (u32)c->regs[i->reg];
  NEED_CPL0(c);
  int r = x86_read(c, i->seg, x86_ea(c, i), desc, sizeof(desc));
  if (r) return r;
  u64 current = c->cr4 & CR4_PCIDE ? c->cr3 & 0xfff : 0;
  if (type > INVPCID_ALL || desc[0] >> 12) return x86_gp0(c);
  if (type <= INVPCID_CONTEXT && desc[0] && !(c->cr4 & CR4_PCIDE)) return x86_gp0(c);
  if (type == INVPCID_ADDRESS && !x86_canonical(c, desc[1])) return x86_gp0(c);
  if (type >= INVPCID_ALL_GLOBAL) {
    x86_mmu_forget_pcids(c);
    x86_mmu_flush_all(c, type == INVPCID_ALL_GLOBAL);
  } else if (desc[0] != current) {
    x86_mmu_forget_pcid(c, (unsigned)desc[0]);
  } else if (type == INVPCID_CONTEXT)
    x86_mmu_flush_all(c, false);
  else
    x86_mmu_flush_page(c, desc[1]);
  return X86_END;
}

/* CLFLUSH and its kin check their operand like a one-byte load, but read nothing (a device would notice). */
static int exec_clflush(struct x86_vcpu *c, const struct x86_insn *i) {
  u64 lin;
  void *host;
  struct x86_walk w;
  int r = x86_linear(c, i->seg, x86_ea(c, i), 1, ACC_READ, &lin);
  if (r || x86_host_span(c, lin, 1, ACC_READ, &host)) return r;
  return x86_walk_page(c, lin, ACC_READ, c->cpl == 3, false, true, &w);
}

static int exec_clzero(struct x86_vcpu *c, const struct x86_insn *i) {
  static const u8 zero[64];
  u64 mask = i->adsize == 8 ? ~0ull : i->adsize == 4 ? 0xffffffffull : 0xffffull;
  return x86_write(c, i->seg, c->regs[RAX] & mask & ~63ull, zero, sizeof(zero));
}

/* ---- rows ---- */

#define M(name) ZYDIS_MNEMONIC_##name

/* S(mnemonic, handler, whether the block ends behind it): instructions whose decoded form says all */
#define SIMPLE(S)                                                                                                                \
  S(RDMSR, exec_rdmsr, false)                                                                                                    \
  S(WRMSR, exec_wrmsr, true)                                                                                                     \
  S(RDTSC, exec_rdtsc, false)                                                                                                    \
  S(RDTSCP, exec_rdtscp, false)                                                                                                  \
  S(RDPMC, exec_rdpmc, false)                                                                                                    \
  S(CPUID, exec_cpuid, false)                                                                                                    \
  S(PAUSE, exec_nop, false)                                                                                                      \
  S(SERIALIZE, exec_serialize, true)                                                                                             \
  S(INVD, exec_cache_flush_all, false)                                                                                           \
  S(WBINVD, exec_cache_flush_all, false)                                                                                         \
  S(HLT, exec_hlt, true)                                                                                                         \
  S(VMCALL, exec_vmcall, false)                                                                                                  \
  S(VMMCALL, exec_vmmcall, false)                                                                                                \
  S(RSM, exec_rsm, true)                                                                                                         \
  S(RDPKRU, exec_rdpkru, false)                                                                                                  \
  S(WRPKRU, exec_wrpkru, true)                                                                                                   \
  S(INVLPG, exec_invlpg, true)                                                                                                   \
  S(CLFLUSH, exec_clflush, false)                                                                                                \
  S(CLFLUSHOPT, exec_clflush, false)                                                                                             \
  S(CLWB, exec_clflush, false)

#define SIMPLE_SELECT(mnemonic, handler, end)                                                                                    \
  static x86_exec_fn *select_##mnemonic(const struct x86_decoded *d, struct x86_insn *i) {                                       \
    if (end) i->iflags |= X86_I_END;                                                                                             \
    return handler;                                                                                                              \
  }
SIMPLE(SIMPLE_SELECT)

static x86_exec_fn *select_rdpid(const struct x86_decoded *d, struct x86_insn *i) {
  i->rm = (u8)x86_reg_number(d->ops[0].reg.value);
  return exec_rdpid;
}

static x86_exec_fn *select_invpcid(const struct x86_decoded *d, struct x86_insn *i) {
  i->reg = (u8)x86_reg_number(d->ops[0].reg.value);
  i->iflags |= X86_I_END;
  return exec_invpcid;
}

u8 x86_implied_segment(const struct x86_decoded *d) {
  static const struct {
    ZydisInstructionAttributes prefix;
    u8 seg;
  } overrides[] = {{ZYDIS_ATTRIB_HAS_SEGMENT_CS, SEG_CS}, {ZYDIS_ATTRIB_HAS_SEGMENT_SS, SEG_SS},
                   {ZYDIS_ATTRIB_HAS_SEGMENT_DS, SEG_DS}, {ZYDIS_ATTRIB_HAS_SEGMENT_ES, SEG_ES},
                   {ZYDIS_ATTRIB_HAS_SEGMENT_FS, SEG_FS}, {ZYDIS_ATTRIB_HAS_SEGMENT_GS, SEG_GS}};
  for (unsigned k = 0; k < ARRAY_SIZE(overrides); k++)
    if (d->insn.attributes & overrides[k].prefix) return overrides[k].seg;
  return SEG_DS;
}

static x86_exec_fn *select_clzero(const struct x86_decoded *d, struct x86_insn *i) {
  i->seg = x86_implied_segment(d);
  return exec_clzero;
}

static const struct x86_op_row rows[] = {
#define SIMPLE_ROW(mnemonic, handler, end) {M(mnemonic), select_##mnemonic},
    SIMPLE(SIMPLE_ROW)
#undef SIMPLE_ROW
        {M(CLZERO), select_clzero},
    {M(MONITOR), x86_select_monitor},
    {M(MWAIT), x86_select_mwait},
    {M(RDPID), select_rdpid},
    {M(INVPCID), select_invpcid},
    {M(MOV), x86_select_mov_cr_dr},
    {M(CLTS), x86_select_clts},
    {M(RDRAND), x86_select_random},
    {M(RDSEED), x86_select_random},
};

const struct x86_op_family x86_family_system = {.name = "system", .rows = rows, .n = ARRAY_SIZE(rows)};
