/* Copies between the library and the client that answer -EFAULT for a bad address. */
#include "api/ioctl.h"
#include "base/fault.h"

int copy_from_user(void *dst, const void *user, size_t len) { return fault_copy(dst, user, len); }
int copy_to_user(void *user, const void *src, size_t len) { return fault_copy(user, src, len); }
