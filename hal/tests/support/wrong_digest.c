/* Loaded into swtpm: a TPM that signs something else than it was told, for as long as the file $WRONG_DIGEST is there.
 * Its answer is authenticated and well formed all the same. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void *(*sign_function)(const unsigned char *, int, void *);

void *ECDSA_do_sign(const unsigned char *digest, int length, void *key)
{
    sign_function sign = (sign_function)dlsym(RTLD_NEXT, "ECDSA_do_sign");
    const char *order = getenv("WRONG_DIGEST");
    unsigned char other[64];

    if (!sign || length < 1 || length > (int)sizeof other)
        abort();
    memcpy(other, digest, (size_t)length);
    if (order && access(order, F_OK) == 0)
        other[0] ^= 1;
    return sign(other, length, key);
}
