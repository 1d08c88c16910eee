/* A vCPU's CPUID table: setting it, what the guest reads, and the bits that follow run-time state.
 *
 * Run-time bits are refreshed one by one by the event that changes them; the entries they are in are found once, when the table
 * is set. */
#include <asm/kvm_para.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "core/stats.h"
#include "x86/cpuid/cpuid.h"
#include "x86/mmu/access.h"

#define MISC_ENABLE_MWAIT BIT(18)
#define APIC_BASE_ENABLE  BIT(11)

struct kvm_cpuid_entry2 *x86_cpuid_find(struct x86_vcpu *c, struct kvm_cpuid_entry2 *entries, u32 n, u32 function, u32 index) {
  vcpu_stat_inc(&c->core, cpuid_searches);
  for (u32 k = 0; k < n; k++)
    if (entries[k].function == function && (!(entries[k].flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || entries[k].index == index))
      return &entries[k];
  return NULL;
}

static struct kvm_cpuid_entry2 *find(struct x86_vcpu *c, const struct x86_cpuid *id, u32 function, u32 index) {
  return x86_cpuid_find(c, id->entries, id->n, function, index);
}

/* ---- features ---- */

/* The base of KVM's leaves: clients move them up when they show another hypervisor's first. */
static u32 kvm_base(struct x86_vcpu *c, const struct x86_cpuid *id) {
  for (u32 base = 0x40000000u; base < 0x40010000u; base += 0x100) {
    const struct kvm_cpuid_entry2 *e = find(c, id, base, 0);
    if (!e) continue;
    u32 signature[3] = {e->ebx, e->ecx, e->edx};
    if (!memcmp(signature, "KVMKVMKVM\0\0", sizeof(signature))) return base;
  }
  return 0;
}

/* An instruction works where the table shows it and the engine has it. */
static void collect_features(struct x86_vcpu *c, const struct x86_cpuid *id, u32 base, u64 *features) {
  memset(features, 0, X86_CPUID_FEATURE_WORDS * sizeof(*features));
  for (unsigned f = 0; f < X86_FEATURE_COUNT; f++) {
    const struct x86_feature_row *row = &x86_feature_rows[f];
    bool kvm_leaf = row->leaf >> 8 == 0x400000;
    if (kvm_leaf && !base) continue;
    struct kvm_cpuid_entry2 *e = find(c, id, kvm_leaf ? base | (row->leaf & 0xff) : row->leaf, row->subleaf);
    if (e && (*x86_cpuid_reg(e, row->reg) >> row->bit & 1)) features[f / 64] |= BIT(f % 64);
  }
}

/* Before KVM_SET_CPUID2 nothing is shown, but like on a real processor everything runs that is announced. */
static void engine_features(u64 *features) {
  memset(features, 0, X86_CPUID_FEATURE_WORDS * sizeof(*features));
  for (unsigned f = 0; f < X86_FEATURE_COUNT; f++)
    if (x86_engine_has((enum x86_feature)f)) features[f / 64] |= BIT(f % 64);
  if (!(x86_xcr0_announced() & XC(PKRU))) features[X86_FEATURE_PKU / 64] &= ~BIT(X86_FEATURE_PKU % 64);
}

static void show(struct x86_vcpu *c, enum x86_feature f, struct kvm_cpuid_entry2 *e, bool on) {
  const struct x86_feature_row *row = &x86_feature_rows[f];
  struct x86_cpuid *id = c->cpuid;
  if (!e) return;
  vcpu_stat_inc(&c->core, cpuid_updates);
  u32 *reg = x86_cpuid_reg(e, row->reg);
  *reg = (*reg & ~(1u << row->bit)) | (u32)on << row->bit;
  id->features[f / 64] = (id->features[f / 64] & ~BIT(f % 64)) | (u64)on << (f % 64);
}

/* ---- run-time bits ---- */

void x86_cpuid_cr4_changed(struct x86_vcpu *c, u64 changed) {
  struct x86_cpuid *id = c->cpuid;
  if (changed & CR4_OSXSAVE) show(c, X86_FEATURE_OSXSAVE, id->leaf1, c->cr4 & CR4_OSXSAVE);
  if (changed & CR4_PKE) show(c, X86_FEATURE_OSPKE, id->leaf7, c->cr4 & CR4_PKE);
}

void x86_cpuid_apic_changed(struct x86_vcpu *c) {
  show(c, X86_FEATURE_APIC, c->cpuid->leaf1, c->apic_base & APIC_BASE_ENABLE);
}

void x86_cpuid_mwait_changed(struct x86_vcpu *c) {
  u64 misc_enable;
  if (!(x86_vm_of(c)->disabled_quirks & KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT)) return;
  if (!c->msr || x86_msr_get_host(c, 0x1a0, &misc_enable)) return;
  show(c, X86_FEATURE_MONITOR, c->cpuid->leaf1, misc_enable & MISC_ENABLE_MWAIT);
}

void x86_cpuid_xcr0_changed(struct x86_vcpu *c) {
  struct x86_cpuid *id = c->cpuid;
  if (id->leafd0) {
    id->leafd0->ebx = (u32)x86_xsave_size(c->xcr0);
    vcpu_stat_inc(&c->core, cpuid_updates);
  }
  if (id->leafd1 && (id->leafd1->eax & 0xa)) { /* XSAVEC, XSAVES */
    id->leafd1->ebx = (u32)x86_xstate_packed_size(c->xcr0 | c->xss);
    vcpu_stat_inc(&c->core, cpuid_updates);
  }
}

void x86_cpuid_runtime_changed(struct x86_vcpu *c) {
  x86_cpuid_cr4_changed(c, CR4_OSXSAVE | CR4_PKE);
  x86_cpuid_apic_changed(c);
  x86_cpuid_mwait_changed(c);
  x86_cpuid_xcr0_changed(c);
}

/* ---- setting ---- */

static bool vendor_is_amd(const struct kvm_cpuid_entry2 *leaf0) {
  char vendor[12];
  if (!leaf0) return false;
  memcpy(vendor, &leaf0->ebx, 4);
  memcpy(vendor + 4, &leaf0->edx, 4);
  memcpy(vendor + 8, &leaf0->ecx, 4);
  return !memcmp(vendor, "AuthenticAMD", 12) || !memcmp(vendor, "AMDisbetter!", 12) || !memcmp(vendor, "HygonGenuine", 12);
}

static u8 maxphyaddr(struct x86_vcpu *c, const struct x86_cpuid *id) {
  const struct kvm_cpuid_entry2 *max = find(c, id, 0x80000000u, 0), *e = find(c, id, 0x80000008u, 0);
  return max && max->eax >= 0x80000008u && e ? (u8)e->eax : 36;
}

static int check(struct x86_vcpu *c, struct kvm_cpuid_entry2 *entries, u32 n) {
  const struct kvm_cpuid_entry2 *e = x86_cpuid_find(c, entries, n, 0x80000008u, 0);
  u32 virt = e ? e->eax >> 8 & 0xff : 0;
  return virt && virt != 48 && virt != 57 ? -EINVAL : 0;
}

/* Things that follow from the table alone. */
static void derive(struct x86_vcpu *c, struct x86_cpuid *id, u32 base) {
  struct kvm_cpuid_entry2 *pv = base ? find(c, id, base | 1, 0) : NULL;
  id->leaf1 = find(c, id, 1, 0);
  id->leaf7 = find(c, id, 7, 0);
  id->leafd0 = find(c, id, 0xd, 0);
  id->leafd1 = find(c, id, 0xd, 1);
  id->amd = vendor_is_amd(find(c, id, 0, 0));
  id->maxphyaddr = maxphyaddr(c, id);
  id->edx7 = id->leaf7 ? id->leaf7->edx : 0;
  id->xcr0 = id->leafd0 ? (id->leafd0->eax | (u64)id->leafd0->edx << 32) & x86_xcr0_supported() : 0;
  /* A guest whose HLT does not exit cannot be kicked out of it. */
  if (pv && (x86_vm_of(c)->exits_disabled & KVM_X86_DISABLE_EXITS_HLT)) pv->eax &= ~(1u << KVM_FEATURE_PV_UNHALT);
  if (pv) id->pv_features = pv->eax;
}

static bool same_table(const struct x86_cpuid *id, const struct kvm_cpuid_entry2 *entries, u32 n) {
  if (n != id->n) return false;
  for (u32 k = 0; k < n; k++)
    if (memcmp(&entries[k], &id->entries[k], offsetof(struct kvm_cpuid_entry2, padding))) return false;
  return true;
}

/* The run-time bits of a table that is only compared. */
static void refresh(struct x86_vcpu *c, struct kvm_cpuid_entry2 *entries, u32 n) {
  struct x86_cpuid *id = c->cpuid, saved = *id;
  id->leaf1 = x86_cpuid_find(c, entries, n, 1, 0);
  id->leaf7 = x86_cpuid_find(c, entries, n, 7, 0);
  id->leafd0 = x86_cpuid_find(c, entries, n, 0xd, 0);
  id->leafd1 = x86_cpuid_find(c, entries, n, 0xd, 1);
  x86_cpuid_runtime_changed(c);
  memcpy(id, &saved, offsetof(struct x86_cpuid, config));
}

int x86_cpuid_set(struct x86_vcpu *c, struct kvm_cpuid_entry2 *entries, u32 n) {
  struct x86_cpuid *id = c->cpuid;
  u64 features[X86_CPUID_FEATURE_WORDS];
  if (id->ran) { /* only the table it has (Documentation/virt/kvm/api.rst, KVM_SET_CPUID2) */
    refresh(c, entries, n);
    if (!same_table(id, entries, n)) return -EINVAL;
    free(entries);
    return 0;
  }
  int r = check(c, entries, n);
  if (r) return r;
  struct x86_cpuid next = *id;
  next.entries = entries;
  next.n = n;
  u32 base = kvm_base(c, &next);
  derive(c, &next, base);
  collect_features(c, &next, base, features);
  r = x86_isa_assign(c, features);
  if (r) return r;
  memcpy(next.features, features, sizeof(features));
  free(id->entries);
  memcpy(id, &next, offsetof(struct x86_cpuid, config));
  x86_cpuid_runtime_changed(c);
  x86_mmu_mode_changed(c); /* MAXPHYADDR */
  x86_pmu_cpuid_changed(c);
  return 0;
}

int x86_cpuid_create(struct x86_vcpu *c) {
  u64 features[X86_CPUID_FEATURE_WORDS];
  c->cpuid = calloc(1, sizeof(*c->cpuid));
  if (!c->cpuid) return -ENOMEM;
  c->cpuid->maxphyaddr = 36;
  engine_features(features);
  memcpy(c->cpuid->features, features, sizeof(features));
  return x86_isa_assign(c, features);
}

void x86_cpuid_destroy(struct x86_vcpu *c) {
  if (!c->cpuid) return;
  free(c->cpuid->entries);
  free(c->cpuid);
  c->cpuid = NULL;
}

u64 x86_cpuid_xcr0(const struct x86_vcpu *c) {
  return c->cpuid->n ? c->cpuid->xcr0 : x86_xcr0_supported();
}

unsigned x86_maxphyaddr(const struct x86_vcpu *c) {
  return c->cpuid->maxphyaddr;
}

/* ---- reading ---- */

/* Leaves beyond their class's maximum read as the highest basic leaf on Intel's processors, as zeros on AMD's (SDM Vol. 2A,
 * CPUID; APM Vol. 3, CPUID). Hypervisor leaves are classes of 256 each. */
static struct kvm_cpuid_entry2 *out_of_range(struct x86_vcpu *c, const struct x86_cpuid *id, u32 *function, u32 index) {
  struct kvm_cpuid_entry2 *basic = find(c, id, 0, 0), *class;
  if (!basic || id->amd) return NULL;
  if (*function >> 28 == 4)
    class = find(c, id, *function & 0xffffff00u, 0);
  else if (*function >= 0xc0000000u)
    class = find(c, id, 0xc0000000u, 0);
  else
    class = find(c, id, *function & 0x80000000u, 0);
  if (class && *function <= class->eax) return NULL;
  *function = basic->eax;
  return find(c, id, basic->eax, index);
}

void x86_cpuid_get(struct x86_vcpu *c, u32 leaf, u32 subleaf, u32 out[4]) {
  const struct x86_cpuid *id = c->cpuid;
  const struct kvm_cpuid_entry2 *e = find(c, id, leaf, subleaf);
  if (!e) e = out_of_range(c, id, &leaf, subleaf);
  if (e) {
    out[0] = e->eax, out[1] = e->ebx, out[2] = e->ecx, out[3] = e->edx;
    return;
  }
  memset(out, 0, 4 * sizeof(*out));
  if (leaf != 0xb && leaf != 0x1f) return;
  /* Undefined topology sub-leaves still return the sub-leaf number and the x2APIC ID (SDM Vol. 2A, CPUID leaf 0BH). */
  e = find(c, id, leaf, 1);
  if (!e) return;
  out[2] = subleaf & 0xff;
  out[3] = e->edx;
}
