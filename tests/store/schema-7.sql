-- A database of schema 7, with rows in every table: what a migration finds.
PRAGMA application_id = 1651205497;
PRAGMA user_version = 7;
CREATE TABLE event (
        number   INTEGER PRIMARY KEY AUTOINCREMENT,
        time     INTEGER NOT NULL,
        token    TEXT,
        document TEXT NOT NULL
    , latest INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "event" VALUES(1,1800000000000,'t','{"time":"2027-01-15T08:00:00Z","event":"join.first","token":"t","success":true}',1800000000000);
INSERT INTO "event" VALUES(2,1800000002000,NULL,'{"time":"2027-01-15T08:00:02Z","event":"resource.created","success":true,"actor":"local:0","resource":"bot/b"}',1800000002000);
INSERT INTO "event" VALUES(3,1800000001000,'t','{"time":"2027-01-15T08:00:01Z","event":"join.renewal","token":"t","success":true}',1800000002000);
CREATE TABLE gone (
        subject TEXT PRIMARY KEY,   -- 'token/NAME/INCARNATION' or 'bot/NAME'
        ends    INTEGER NOT NULL    -- when the last of the certificates ends: milliseconds since 1970
    ) STRICT, WITHOUT ROWID;
INSERT INTO "gone" VALUES('bot/gone-bot',1800003600000);
INSERT INTO "gone" VALUES('token/old/',1800003600000);
INSERT INTO "gone" VALUES('token/removed/00112233-4455-6677-8899-aabbccddeeff',1800003600000);
INSERT INTO "gone" VALUES('token/t//',1800003600000);
CREATE TABLE "issued" (
        token     TEXT NOT NULL,    -- of a deleted one: 'NAME/INCARNATION'
        serial    TEXT NOT NULL,
        bot       TEXT,
        instance  TEXT NOT NULL,
        not_after INTEGER NOT NULL, -- milliseconds since 1970
        PRIMARY KEY (token, serial)
    ) STRICT, WITHOUT ROWID;
INSERT INTO "issued" VALUES('locked','00000000000000000000000000000002','b','i2',1800003600000);
INSERT INTO "issued" VALUES('old/','00000000000000000000000000000004','b','i4',1800003600000);
INSERT INTO "issued" VALUES('removed/00112233-4455-6677-8899-aabbccddeeff','00000000000000000000000000000003','b','i3',1800003600000);
INSERT INTO "issued" VALUES('removed/00112233-4455-6677-8899-aabbccddeeff','0000000000001003',NULL,'i3',1800003600000);
INSERT INTO "issued" VALUES('t','00000000000000000000000000000001','b','10112233-4455-6677-8899-aabbccddeeff',1800003600000);
INSERT INTO "issued" VALUES('t','0000000000001001',NULL,'10112233-4455-6677-8899-aabbccddeeff',1800003600000);
INSERT INTO "issued" VALUES('t//','00000000000000000000000000000005','b','i5',1800003600000);
INSERT INTO "issued" VALUES('t2','00000000000000000000000000000006','gone-bot','i6',1800003600000);
CREATE TABLE meta (
        id       INTEGER PRIMARY KEY CHECK (id = 1),
        revision INTEGER NOT NULL,
        policy   INTEGER NOT NULL
    , epoch BLOB NOT NULL DEFAULT x'00000000000000000000000000000000') STRICT;
INSERT INTO "meta" VALUES(1,12,5,X'0123456789ABCDEF0123456789ABCDEF');
CREATE TABLE resource (
        kind     TEXT NOT NULL,
        name     TEXT NOT NULL,
        revision INTEGER NOT NULL,
        subject  TEXT,      -- 'kind/name' that a lock stops, or whose token an instance joined with
        ends     INTEGER,   -- when an instance, a lock, or the exemption of a token ends: milliseconds since 1970
        document TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT;
INSERT INTO "resource" VALUES('role','r',1,NULL,NULL,'{"metadata":{"name":"r"},"spec":{}}');
INSERT INTO "resource" VALUES('bot','b',2,NULL,NULL,'{"metadata":{"name":"b"},"spec":{"roles":["r"]}}');
INSERT INTO "resource" VALUES('token','t',3,NULL,1800003600000,'{"metadata":{"name":"t"},"spec":{"roles":["Bot"],"bot_name":"b","join_method":"bound_keypair","bound_keypair":{}},"status":{"bound_keypair":{"recovery_count":1,"bound_bot_instance_id":"10112233-4455-6677-8899-aabbccddeeff","incarnation":"00112233-4455-6677-8899-aabbccddeeff","exemption":{"recoveries":1,"waive_join_state":true,"expires":"2027-01-15T09:00:00Z"}}}}');
INSERT INTO "resource" VALUES('token','locked',4,NULL,NULL,'{"metadata":{"name":"locked"},"spec":{"roles":["Bot"],"bot_name":"b","join_method":"bound_keypair","bound_keypair":{}},"status":{"bound_keypair":{"recovery_count":1}}}');
INSERT INTO "resource" VALUES('bot_instance','10112233-4455-6677-8899-aabbccddeeff',5,'token/t',1800007200000,'{"metadata":{"name":"10112233-4455-6677-8899-aabbccddeeff","expires":"2027-01-15T10:00:00Z"},"spec":{"bot_name":"b","token":"t"}}');
INSERT INTO "resource" VALUES('host','20112233-4455-6677-8899-aabbccddeeff',6,'token/n',1800007200000,'{"metadata":{"name":"20112233-4455-6677-8899-aabbccddeeff","expires":"2027-01-15T10:00:00Z"},"spec":{"token":"n"}}');
INSERT INTO "resource" VALUES('lock','own',7,'token/locked',NULL,'{"metadata":{"name":"own"},"spec":{"target":{"token":"locked"},"message":"two holders","automatic":true}}');
INSERT INTO "resource" VALUES('lock','outlived',8,'token/removed',NULL,'{"metadata":{"name":"outlived"},"spec":{"target":{"token":"removed"},"message":"two holders","automatic":true}}');
CREATE INDEX resource_subject ON resource (subject) WHERE subject IS NOT NULL;
CREATE INDEX resource_ends ON resource (kind, ends) WHERE ends IS NOT NULL;
CREATE INDEX event_time ON event (time);
CREATE INDEX event_token ON event (token) WHERE token IS NOT NULL;
CREATE INDEX issued_bot ON issued (bot) WHERE bot IS NOT NULL;
CREATE INDEX issued_instance ON issued (instance);
CREATE INDEX issued_not_after ON issued (not_after);
CREATE INDEX gone_ends ON gone (ends);
CREATE INDEX resource_alike ON resource (kind, name COLLATE NOCASE);
CREATE INDEX event_latest ON event (latest);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('event',3);
