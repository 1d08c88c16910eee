/* The leaves of KVM_GET_SUPPORTED_CPUID: the host's identity and caches, the engine's features.
 *
 * Manuals: Intel SDM Vol. 2A CPUID; AMD APM Vol. 3 appendix E; Documentation/virt/kvm/x86/cpuid.rst. */
#include <cpuid.h>
#include <errno.h>
#include <string.h>
#include "x86/cpuid/cpuid.h"
#include "x86/pmu/pmu.h"

struct builder {
  struct kvm_cpuid_entry2 *entries;
  u32 max, n;
  int error;
};

static struct kvm_cpuid_entry2 scratch; /* what a full table's leaves are written to; never read */

static struct kvm_cpuid_entry2 *add(struct builder *b, u32 function, u32 index, u32 flags) {
  if (b->n == b->max) {
    b->error = -E2BIG;
    return &scratch;
  }
  struct kvm_cpuid_entry2 *e = &b->entries[b->n++];
  *e = (struct kvm_cpuid_entry2){.function = function, .index = index, .flags = flags};
  return e;
}

static struct kvm_cpuid_entry2 host_leaf(u32 function, u32 index) {
  struct kvm_cpuid_entry2 e = {.function = function, .index = index};
  u32 max = __get_cpuid_max(function & 0x80000000u, NULL);
  if (max >= function) __cpuid_count(function, index, e.eax, e.ebx, e.ecx, e.edx);
  return e;
}

static void copy_host(struct builder *b, u32 function, u32 index, u32 flags) {
  struct kvm_cpuid_entry2 h = host_leaf(function, index);
  *add(b, function, index, flags) = (struct kvm_cpuid_entry2){
      .function = function, .index = index, .flags = flags, .eax = h.eax, .ebx = h.ebx, .ecx = h.ecx, .edx = h.edx};
}

static void leaf_host(struct builder *b, u32 function) {
  copy_host(b, function, 0, 0);
}
static void leaf_zero(struct builder *b, u32 function) {
  add(b, function, 0, 0);
}
static void leaf_indexed_zero(struct builder *b, u32 function) {
  add(b, function, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
}

static void leaf_0(struct builder *b, u32 function) {
  struct kvm_cpuid_entry2 h = host_leaf(0, 0), *e = add(b, 0, 0, 0);
  e->eax = MAX(MIN(h.eax, 0x1fu), 0xdu);
  e->ebx = h.ebx, e->ecx = h.ecx, e->edx = h.edx;
}

static void leaf_1(struct builder *b, u32 function) {
  struct kvm_cpuid_entry2 *e = add(b, 1, 0, 0);
  e->eax = host_leaf(1, 0).eax;
  e->ebx = 0x800; /* 64-byte CLFLUSH lines; the client fills in the topology */
  e->ecx = x86_engine_word(1, 0, CPUID_ECX);
  e->edx = x86_engine_word(1, 0, CPUID_EDX);
}

/* Sub-leaves up to the first that describes no cache (SDM Vol. 2A, CPUID leaf 04H; APM Vol. 3 E.4.17). */
static void leaf_caches(struct builder *b, u32 function) {
  u32 index = 0;
  do copy_host(b, function, index, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
  while (!b->error && (host_leaf(function, index++).eax & 0x1f));
}

static void leaf_6(struct builder *b, u32 function) {
  add(b, 6, 0, 0)->eax = x86_engine_word(6, 0, CPUID_EAX);
}

/* Controls of speculation that the guest may set, and whose effect it has anyway: so its kernel does without the costly ways
 * around them. */
#define LEAF_7_2_BHI_CTRL 0x10u
#define LEAF_7_2_MCDT_NO  0x20u

/* Protection keys whose register has no place in the host's XSAVE area are offered as emulated: a client has to know where it is. */
#define LEAF_7_PKU 8u

static u32 hidden_keys(void) {
  return x86_engine_has(X86_FEATURE_PKU) && !(x86_xcr0_announced() & XC(PKRU)) ? LEAF_7_PKU : 0;
}

static void leaf_7(struct builder *b, u32 function) {
  struct kvm_cpuid_entry2 *e = add(b, 7, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
  e->eax = 2;
  e->ebx = x86_engine_word(7, 0, CPUID_EBX);
  e->ecx = x86_engine_word(7, 0, CPUID_ECX) & ~hidden_keys();
  e->edx = x86_engine_word(7, 0, CPUID_EDX) | X86_CPUID_7_EDX_SPEC_CTRL | X86_CPUID_7_EDX_STIBP | X86_CPUID_7_EDX_ARCH_CAPS |
           X86_CPUID_7_EDX_SSBD;
  add(b, 7, 1, KVM_CPUID_FLAG_SIGNIFCANT_INDEX)->eax = x86_engine_word(7, 1, CPUID_EAX);
  add(b, 7, 2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX)->edx = LEAF_7_2_BHI_CTRL | LEAF_7_2_MCDT_NO;
}

/* Architectural performance monitoring, version 2 (SDM Vol. 2A, CPUID leaf 0AH), of Intel processors. */
static void leaf_a(struct builder *b, u32 function) {
  struct kvm_cpuid_entry2 *e = add(b, function, 0, 0);
  if (!x86_engine_has(X86_FEATURE_PDCM)) return;
  e->eax = 2 | PMU_GP_MAX << 8 | PMU_WIDTH << 16 | PMU_EVENTS << 24;
  e->ebx = PMU_UNAVAILABLE;
  e->edx = PMU_FIXED_MAX | PMU_WIDTH << 5 | 1u << 15; /* no "any thread" bits */
}

static void leaf_d(struct builder *b, u32 function) {
  u64 xcr0 = x86_xcr0_announced();
  struct kvm_cpuid_entry2 *e = add(b, 0xd, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
  if (!x86_engine_has(X86_FEATURE_XSAVE)) return;
  e->eax = (u32)xcr0;
  e->edx = (u32)(xcr0 >> 32);
  e->ebx = e->ecx = (u32)x86_xsave_size(xcr0);
  e = add(b, 0xd, 1, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
  e->eax = x86_engine_word(0xd, 1, CPUID_EAX);
  if (x86_engine_has(X86_FEATURE_XSAVEC) || x86_engine_has(X86_FEATURE_XSAVES)) e->ebx = (u32)x86_xstate_packed_size(xcr0);
  for (u32 i = 2; i < 63; i++) {
    u32 r[4];
    if (!(xcr0 >> i & 1)) continue;
    x86_xstate_leaf(i, r);
    e = add(b, 0xd, i, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    e->eax = r[0], e->ebx = r[1], e->ecx = r[2] & ~4u; /* no extended feature disable */
  }
}

static void leaf_kvm(struct builder *b, u32 function) {
  struct kvm_cpuid_entry2 *e = add(b, function, 0, 0);
  u32 signature[3];
  memcpy(signature, "KVMKVMKVM\0\0", sizeof(signature));
  e->eax = function + 1;
  e->ebx = signature[0], e->ecx = signature[1], e->edx = signature[2];
}

static void leaf_kvm_features(struct builder *b, u32 function) {
  add(b, function, 0, 0)->eax = x86_engine_word(function, 0, CPUID_EAX);
}

static void leaf_80000000(struct builder *b, u32 function) {
  struct kvm_cpuid_entry2 h = host_leaf(function, 0), *e = add(b, function, 0, 0);
  e->eax = 0x80000021u; /* as KVM has it also on processors with fewer leaves, for what the last one tells */
  e->ebx = h.ebx, e->ecx = h.ecx, e->edx = h.edx;
}

static void leaf_80000001(struct builder *b, u32 function) {
  struct kvm_cpuid_entry2 h = host_leaf(function, 0), *e = add(b, function, 0, 0);
  e->eax = h.eax;
  e->ebx = h.ebx & ~0x0fff0000u;
  e->ecx = x86_engine_word(function, 0, CPUID_ECX);
  e->edx = x86_engine_word(function, 0, CPUID_EDX);
  /* AMD repeats leaf 1 EDX here (APM Vol. 3 E.4.2). */
  if (h.edx & 1) e->edx |= x86_engine_word(1, 0, CPUID_EDX) & 0x0183f3ffu;
}

static void leaf_80000006(struct builder *b, u32 function) {
  leaf_host(b, function);
  if (b->n) b->entries[b->n - 1].edx &= ~0x30000u; /* reserved */
}

static void leaf_80000007(struct builder *b, u32 function) {
  add(b, function, 0, 0)->edx = x86_engine_word(function, 0, CPUID_EDX);
}

static void leaf_80000008(struct builder *b, u32 function) {
  struct kvm_cpuid_entry2 h = host_leaf(function, 0), *e = add(b, function, 0, 0);
  u32 phys = h.eax & 0xff ? h.eax & 0xff : 36, virt = x86_engine_has(X86_FEATURE_LA57) ? 57 : 48;
  e->eax = phys | virt << 8;
  e->ebx = x86_engine_word(function, 0, CPUID_EBX);
}

/* Execution of LFENCE is always serialising here, and there is no return predictor to be trained (SRSO_NO). */
static void leaf_80000021(struct builder *b, u32 function) {
  add(b, function, 0, 0)->eax = BIT(2) | BIT(29);
}

/* One row per range of leaves; what no row names is shown as zeros. */
static const struct {
  u32 first, last;
  void (*fill)(struct builder *b, u32 function);
} leaves[] = {
    {0, 0, leaf_0},
    {1, 1, leaf_1},
    {2, 2, leaf_host},
    {4, 4, leaf_caches},
    {6, 6, leaf_6},
    {7, 7, leaf_7},
    {0xa, 0xa, leaf_a},
    {0xb, 0xb, leaf_indexed_zero}, /* no topology: its presence would be sub-leaf 1 */
    {0xd, 0xd, leaf_d},
    {0x1f, 0x1f, leaf_indexed_zero},
    {0x40000000, 0x40000000, leaf_kvm},
    {0x40000001, 0x40000001, leaf_kvm_features},
    {0x80000000, 0x80000000, leaf_80000000},
    {0x80000001, 0x80000001, leaf_80000001},
    {0x80000002, 0x80000005, leaf_host},
    {0x80000006, 0x80000006, leaf_80000006},
    {0x80000007, 0x80000007, leaf_80000007},
    {0x80000008, 0x80000008, leaf_80000008},
    {0x80000019, 0x8000001a, leaf_host},
    {0x8000001d, 0x8000001d, leaf_caches},
    {0x80000021, 0x80000021, leaf_80000021},
};

static void fill_leaf(struct builder *b, u32 function) {
  for (unsigned k = 0; k < ARRAY_SIZE(leaves); k++)
    if (function >= leaves[k].first && function <= leaves[k].last) {
      leaves[k].fill(b, function);
      return;
    }
  leaf_zero(b, function);
}

int x86_cpuid_supported(struct kvm_cpuid_entry2 *entries, u32 max, u32 *n) {
  static const u32 bases[] = {0, 0x80000000u, 0x40000000u};
  struct builder b = {.entries = entries, .max = max};
  for (unsigned k = 0; k < ARRAY_SIZE(bases) && !b.error; k++) {
    u32 first = b.n;
    fill_leaf(&b, bases[k]);
    if (b.error) break;
    u32 last = entries[first].eax;
    for (u32 f = bases[k] + 1; f <= last && !b.error; f++) fill_leaf(&b, f);
  }
  *n = b.n;
  return b.error;
}

/* Nothing is slower than native by nature here: the list says what KVM's instruction emulator adds on any host, and what the host's
 * processor has no room for. */
int x86_cpuid_emulated(struct kvm_cpuid_entry2 *entries, u32 max, u32 *n) {
  struct builder b = {.entries = entries, .max = max};
  add(&b, 0, 0, 0)->eax = 7;
  add(&b, 1, 0, 0)->ecx = 1u << 22;                               /* MOVBE */
  add(&b, 7, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX)->ecx = 1u << 22 | hidden_keys(); /* RDPID */
  *n = b.n;
  return b.error;
}
