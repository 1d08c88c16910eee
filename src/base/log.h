/* Messages to the developer on standard error, and errors traced where they are born (debug builds). */
#ifndef BASE_LOG_H
#define BASE_LOG_H

/* One line on standard error, prefixed "uvirt: ".  For things the client has no other way to learn of; never for guest behaviour.
 */
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

#ifdef NDEBUG
#define trace_error(err) (err)
#else
/* Returns err; prints where it was born when UVIRT_TRACE is set in the environment. */
int trace_error_at(int err, const char *file, int line);
#define trace_error(err) trace_error_at(err, __FILE__, __LINE__)
#endif

#endif
