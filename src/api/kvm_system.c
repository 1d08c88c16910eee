/* The neutral ioctls of /dev/kvm. */
#include <errno.h>
#include <unistd.h>
#include "api/caps.h"
#include "api/dispatch.h"
#include "base/log.h"

static long get_api_version(struct ioctl_ctx *ctx, void *data) { return ctx->value ? -EINVAL : KVM_API_VERSION; }

static long create_vm(struct ioctl_ctx *ctx, void *data) {
  const struct api *api = ctx->object->api;
  int fd = fd_make("kvm-vm", true);
  if (fd < 0) return fd;
  struct fd_object o = {.kind = FD_VM, .api = api};
  int r = vm_create(api_arch(api), ctx->value, &o.vm);
  if (r) {
    close(fd);
    return r;
  }
  return fd_install(fd, &o);
}

static long check_extension(struct ioctl_ctx *ctx, void *data) {
  return caps_check(api_arch(ctx->object->api), NULL, (long)ctx->value);
}

static long get_vcpu_mmap_size(struct ioctl_ctx *ctx, void *data) {
  return ctx->value ? -EINVAL : (long)(VCPU_MMAP_PAGES * PAGE_SIZE);
}

static long trace_gone(struct ioctl_ctx *ctx, void *data) { return -EOPNOTSUPP; }

static const struct ioctl_row rows[] = {
    {KVM_GET_API_VERSION, "KVM_GET_API_VERSION", ARG_VALUE, LOCK_NONE, get_api_version},
    {KVM_CREATE_VM, "KVM_CREATE_VM", ARG_VALUE, LOCK_NONE, create_vm},
    {KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION", ARG_VALUE, LOCK_NONE, check_extension},
    {KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE", ARG_VALUE, LOCK_NONE, get_vcpu_mmap_size},
    {__KVM_DEPRECATED_MAIN_W_0x06, "KVM_TRACE_ENABLE", ARG_VALUE, LOCK_NONE, trace_gone},
    {__KVM_DEPRECATED_MAIN_0x07, "KVM_TRACE_PAUSE", ARG_VALUE, LOCK_NONE, trace_gone},
    {__KVM_DEPRECATED_MAIN_0x08, "KVM_TRACE_DISABLE", ARG_VALUE, LOCK_NONE, trace_gone},
};

const struct ioctl_rows kvm_system_rows = {rows, ARRAY_SIZE(rows)};
