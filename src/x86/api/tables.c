/* CPUID tables and MSR lists, as user space passes them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "x86/api/api.h"
#include "x86/cpuid/cpuid.h"
#include "x86/msr/msr.h"

/* ---- CPUID ---- */

/* Copies n elements of an array in; NULL with *r = 0 when n is 0. */
static void *copy_array(const void *user, u32 n, size_t element, int *r) {
  void *a = NULL;
  *r = 0;
  if (!n) return NULL;
  a = malloc(n * element);
  *r = a ? copy_from_user(a, user, n * element) : -ENOMEM;
  if (*r) free(a), a = NULL;
  return a;
}

static int cpuid_head(struct ioctl_ctx *ctx, u32 *n) {
  int r = copy_from_user(n, ctx->user, sizeof(*n)); /* kvm_cpuid and kvm_cpuid2 begin with nent */
  return r ? r : *n > X86_CPUID_MAX_ENTRIES ? -E2BIG : 0;
}

static int cpuid_give(struct x86_vcpu *c, struct kvm_cpuid_entry2 *entries, u32 n) {
  int r = x86_cpuid_set(c, entries, n);
  if (r) free(entries);
  return r;
}

long x86_ioctl_set_cpuid2(struct ioctl_ctx *ctx, void *data) {
  u32 n;
  int r = cpuid_head(ctx, &n);
  if (r) return r;
  void *entries = copy_array(user_at(ctx->user, sizeof(struct kvm_cpuid2)), n, sizeof(struct kvm_cpuid_entry2), &r);
  return r ? r : cpuid_give(x86_vcpu(ctx->vcpu), entries, n);
}

/* The old form has no sub-leaves. */
long x86_ioctl_set_cpuid(struct ioctl_ctx *ctx, void *data) {
  u32 n;
  int r = cpuid_head(ctx, &n);
  if (r) return r;
  struct kvm_cpuid_entry *old = copy_array(user_at(ctx->user, sizeof(struct kvm_cpuid)), n, sizeof(*old), &r);
  if (r) return r;
  struct kvm_cpuid_entry2 *entries = n ? calloc(n, sizeof(*entries)) : NULL;
  if (n && !entries) r = -ENOMEM;
  for (u32 k = 0; !r && k < n; k++)
    entries[k] = (struct kvm_cpuid_entry2){
        .function = old[k].function, .eax = old[k].eax, .ebx = old[k].ebx, .ecx = old[k].ecx, .edx = old[k].edx};
  free(old);
  return r ? r : cpuid_give(x86_vcpu(ctx->vcpu), entries, n);
}

long x86_ioctl_get_cpuid2(struct ioctl_ctx *ctx, void *data) {
  const struct x86_cpuid *id = x86_vcpu(ctx->vcpu)->cpuid;
  struct kvm_cpuid2 head;
  int r = copy_from_user(&head, ctx->user, sizeof(head));
  if (r) return r;
  if (head.nent < id->n) return -E2BIG;
  head.nent = id->n;
  r = copy_to_user(user_at(ctx->user, sizeof(head)), id->entries, id->n * sizeof(*id->entries));
  return r ? r : copy_to_user(ctx->user, &head, sizeof(head));
}

/* KVM_GET_EMULATED_CPUID wants the padding of the array it fills to be zero. */
static int check_padding(const void *user, struct kvm_cpuid_entry2 *room, u32 n) {
  if (copy_from_user(room, user, n * sizeof(*room))) return -EINVAL;
  for (u32 k = 0; k < n; k++)
    if (room[k].padding[0] || room[k].padding[1] || room[k].padding[2]) return -EINVAL;
  return 0;
}

static long get_table(struct ioctl_ctx *ctx, int (*fill)(struct kvm_cpuid_entry2 *entries, u32 max, u32 *n), bool padding_zero) {
  struct kvm_cpuid2 head;
  int r = copy_from_user(&head, ctx->user, sizeof(head));
  if (r) return r;
  if (head.nent < 1) return -E2BIG;
  u32 max = MIN(head.nent, (u32)X86_CPUID_MAX_ENTRIES);
  char *user = user_at(ctx->user, sizeof(head));
  struct kvm_cpuid_entry2 *entries = calloc(max, sizeof(*entries));
  if (!entries) return -ENOMEM;
  if (padding_zero) r = check_padding(user, entries, max);
  if (!r) r = fill(entries, max, &head.nent);
  if (!r) r = copy_to_user(user, entries, head.nent * sizeof(*entries));
  if (!r) r = copy_to_user(ctx->user, &head, sizeof(head));
  free(entries);
  return r;
}

long x86_ioctl_get_supported_cpuid(struct ioctl_ctx *ctx, void *data) {
  return get_table(ctx, x86_cpuid_supported, false);
}
long x86_ioctl_get_emulated_cpuid(struct ioctl_ctx *ctx, void *data) {
  return get_table(ctx, x86_cpuid_emulated, true);
}

/* ---- MSRs ---- */

#define MSRS_MAX 256

typedef int msr_one(struct x86_vcpu *c, struct kvm_msr_entry *e);

static int get_one(struct x86_vcpu *c, struct kvm_msr_entry *e) {
  u64 v;
  int r = x86_msr_get_host(c, e->index, &v);
  if (!r) e->data = v;
  return r;
}
static int set_one(struct x86_vcpu *c, struct kvm_msr_entry *e) {
  return x86_msr_set_host(c, e->index, e->data);
}
static int feature_one(struct x86_vcpu *c, struct kvm_msr_entry *e) {
  u64 v = 0;
  int r = x86_msr_feature(e->index, &v);
  e->data = v;
  return r;
}

/* Stops at the first register that is refused; returns how many were handled. */
static long msr_io(struct ioctl_ctx *ctx, msr_one *one, bool write_back) {
  struct kvm_msrs head;
  int r = copy_from_user(&head, ctx->user, sizeof(head));
  if (r) return r;
  if (head.nmsrs >= MSRS_MAX) return -E2BIG;
  char *user = user_at(ctx->user, sizeof(head));
  struct kvm_msr_entry *entries = copy_array(user, head.nmsrs, sizeof(*entries), &r);
  if (r) return r;
  u32 done = 0;
  while (done < head.nmsrs && !one(ctx->vcpu ? x86_vcpu(ctx->vcpu) : NULL, &entries[done])) done++;
  if (write_back) r = copy_to_user(user, entries, head.nmsrs * sizeof(*entries));
  free(entries);
  return r ? r : (long)done;
}

long x86_ioctl_get_msrs(struct ioctl_ctx *ctx, void *data) {
  return msr_io(ctx, get_one, true);
}
long x86_ioctl_set_msrs(struct ioctl_ctx *ctx, void *data) {
  return msr_io(ctx, set_one, false);
}
long x86_ioctl_get_feature_msrs(struct ioctl_ctx *ctx, void *data) {
  return msr_io(ctx, feature_one, true);
}

struct index_list {
  u32 n;
  u32 index[MSRS_MAX];
};

static void add_index(void *arg, u32 index) {
  struct index_list *l = arg;
  if (l->n < MSRS_MAX) l->index[l->n] = index;
  l->n++;
}

static long msr_list(struct ioctl_ctx *ctx, u32 list) {
  struct index_list l = {0};
  u32 room;
  int r = copy_from_user(&room, ctx->user, sizeof(room));
  if (r) return r;
  x86_msr_list(list, add_index, &l);
  r = copy_to_user(ctx->user, &l.n, sizeof(l.n));
  if (r) return r;
  if (room < l.n) return -E2BIG;
  return copy_to_user(user_at(ctx->user, sizeof(struct kvm_msr_list)), l.index, l.n * sizeof(u32));
}

long x86_ioctl_msr_list(struct ioctl_ctx *ctx, void *data) {
  return msr_list(ctx, MSR_LIST_SAVE);
}
long x86_ioctl_feature_msr_list(struct ioctl_ctx *ctx, void *data) {
  return msr_list(ctx, MSR_LIST_FEATURE);
}
