/* See faulty.rs. Orders are files in $FAULTY_DIR, "VALUE TIMES" each; calls are appended to the file "calls" there. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long ulong_t;
typedef ulong_t (*function_t)(void *, ...);

/* Places in CK_FUNCTION_LIST (PKCS#11 2.40, section 5.1), counted from C_Initialize. */
enum {
    INITIALIZE = 0, FINALIZE = 1, GET_FUNCTION_LIST = 3, GET_TOKEN_INFO = 6, INIT_TOKEN = 9, INIT_PIN = 10, OPEN_SESSION = 12,
    CLOSE_SESSION = 13, LOGIN = 18, DESTROY_OBJECT = 22, GET_ATTRIBUTE_VALUE = 24, FIND_OBJECTS_INIT = 26, SIGN_INIT = 42,
    SIGN = 43, GENERATE_KEY_PAIR = 59, FUNCTIONS = 68
};

struct function_list {
    unsigned char version[2];
    function_t functions[FUNCTIONS];
};

struct attribute {
    ulong_t type;
    void *value;
    ulong_t len;
};

static struct function_list *real, ours;

static void path_of(char *path, size_t size, const char *name) {
    const char *dir = getenv("FAULTY_DIR");
    snprintf(path, size, "%s/%s", dir ? dir : ".", name);
}

/* The value of the order `name`, where there is one left. */
static int ordered(const char *name, ulong_t *value) {
    char path[4096];
    ulong_t times;
    FILE *file;
    path_of(path, sizeof path, name);
    file = fopen(path, "r+");
    if (!file)
        return 0;
    if (fscanf(file, "%lu %lu", value, &times) != 2 || times == 0) {
        fclose(file);
        return 0;
    }
    rewind(file);
    fprintf(file, "%lu %-10lu", *value, times - 1);
    fclose(file);
    return 1;
}

static void record(const char *name) {
    char path[4096];
    FILE *file;
    path_of(path, sizeof path, "calls");
    file = fopen(path, "a");
    if (file) {
        fprintf(file, "%s\n", name);
        fclose(file);
    }
}

/* Every argument of these functions is passed in a register or a stack slot of a word, so one shape serves all. */
typedef ulong_t (*call_t)(ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t);

static ulong_t pass(const char *name, int place, ulong_t a, ulong_t b, ulong_t c, ulong_t d, ulong_t e, ulong_t f, ulong_t g, ulong_t h) {
    char after[64];
    ulong_t code, answer;
    record(name);
    if (ordered(name, &code))
        return code;
    answer = ((call_t)real->functions[place])(a, b, c, d, e, f, g, h);
    snprintf(after, sizeof after, "%s.after", name);
    return ordered(after, &code) ? code : answer;
}

#define WRAP(NAME, PLACE) \
    static ulong_t NAME(ulong_t a, ulong_t b, ulong_t c, ulong_t d, ulong_t e, ulong_t f, ulong_t g, ulong_t h) { \
        return pass(#NAME, PLACE, a, b, c, d, e, f, g, h); \
    }

WRAP(C_Initialize, INITIALIZE)
WRAP(C_Finalize, FINALIZE)
WRAP(C_InitToken, INIT_TOKEN)
WRAP(C_InitPIN, INIT_PIN)
WRAP(C_OpenSession, OPEN_SESSION)
WRAP(C_CloseSession, CLOSE_SESSION)
WRAP(C_Login, LOGIN)
WRAP(C_DestroyObject, DESTROY_OBJECT)
WRAP(C_FindObjectsInit, FIND_OBJECTS_INIT)
WRAP(C_SignInit, SIGN_INIT)
WRAP(C_GenerateKeyPair, GENERATE_KEY_PAIR)

static ulong_t C_GetTokenInfo(ulong_t slot, unsigned char *info) {
    ulong_t flags, added, answer = pass("C_GetTokenInfo", GET_TOKEN_INFO, slot, (ulong_t)info, 0, 0, 0, 0, 0, 0);
    if (answer == 0 && ordered("flags", &added)) {
        /* After label, manufacturer (32 bytes each), model and serial number (16 bytes each). */
        memcpy(&flags, info + 96, sizeof flags);
        flags |= added;
        memcpy(info + 96, &flags, sizeof flags);
    }
    return answer;
}

static ulong_t C_Sign(ulong_t session, ulong_t data, ulong_t len, unsigned char *signature, ulong_t signature_len) {
    ulong_t ignored, answer = pass("C_Sign", SIGN, session, data, len, (ulong_t)signature, signature_len, 0, 0, 0);
    if (answer == 0 && signature && ordered("flip", &ignored))
        signature[20] ^= 1;
    return answer;
}

static ulong_t C_GetAttributeValue(ulong_t session, ulong_t object, struct attribute *attributes, ulong_t n) {
    ulong_t i, ignored, answer = pass("C_GetAttributeValue", GET_ATTRIBUTE_VALUE, session, object, (ulong_t)attributes, n, 0, 0, 0, 0);
    for (i = 0; answer == 0 && i < n; i++) {
        /* CKA_EXTRACTABLE */
        if (attributes[i].type == 0x162 && attributes[i].value && ordered("extractable", &ignored))
            *(unsigned char *)attributes[i].value = 1;
    }
    return answer;
}

ulong_t C_GetFunctionList(struct function_list **list) {
    if (!real) {
        const char *module = getenv("FAULTY_MODULE");
        void *library = module ? dlopen(module, RTLD_NOW | RTLD_LOCAL) : NULL;
        ulong_t (*get)(struct function_list **) = library ? (ulong_t (*)(struct function_list **))dlsym(library, "C_GetFunctionList") : NULL;
        if (!get || get(&real) != 0)
            return 5;
        ours = *real;
        ours.functions[INITIALIZE] = (function_t)C_Initialize;
        ours.functions[FINALIZE] = (function_t)C_Finalize;
        ours.functions[GET_FUNCTION_LIST] = (function_t)C_GetFunctionList;
        ours.functions[GET_TOKEN_INFO] = (function_t)C_GetTokenInfo;
        ours.functions[INIT_TOKEN] = (function_t)C_InitToken;
        ours.functions[INIT_PIN] = (function_t)C_InitPIN;
        ours.functions[OPEN_SESSION] = (function_t)C_OpenSession;
        ours.functions[CLOSE_SESSION] = (function_t)C_CloseSession;
        ours.functions[LOGIN] = (function_t)C_Login;
        ours.functions[DESTROY_OBJECT] = (function_t)C_DestroyObject;
        ours.functions[GET_ATTRIBUTE_VALUE] = (function_t)C_GetAttributeValue;
        ours.functions[FIND_OBJECTS_INIT] = (function_t)C_FindObjectsInit;
        ours.functions[SIGN_INIT] = (function_t)C_SignInit;
        ours.functions[SIGN] = (function_t)C_Sign;
        ours.functions[GENERATE_KEY_PAIR] = (function_t)C_GenerateKeyPair;
    }
    *list = &ours;
    return 0;
}
