// Runs the examples of the documents, each as a program of its own on a new server, and compares their output.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { newKey, writeKeys } from "./keys.mjs";
import { Daemon, TIMEOUT } from "./support.mjs";

const ROOT = process.env.MSGBUS_ROOT ?? fileURLToPath(new URL("../../../", import.meta.url));

/** Each `js` block with the next block of output. */
function* examples(document) {
    const blocks = readFileSync(join(ROOT, document), "utf8").matchAll(/^```(\w+)\n(.*?)^```$/gms);
    const all = [...blocks].map(([, language, text]) => ({ language, text }));
    for (const [at, { language, text }] of all.entries()) {
        if (language !== "js") continue;
        yield { program: text, output: all.slice(at).find((block) => block.language === "text").text };
    }
}

for (const document of ["docs/clients.md", "clients/js/README.md"]) {
    for (const [at, { program, output }] of [...examples(document)].entries()) {
        test(`${document}, example ${at + 1}`, async (t) => {
            const [key, entry] = newKey("example", "--allow", "*:**");
            const open = '[anonymous]\nallow = ["*:**"]\n';
            const daemon = await Daemon.start(t, "--keys", writeKeys(open, entry));
            // Beside the tests, where the package is found.
            const directory = mkdtempSync(join(import.meta.dirname, "example-"));
            t.after(() => rmSync(directory, { recursive: true }));
            const file = join(directory, "example.mjs");
            writeFileSync(file, program.replaceAll("http://localhost:8000", daemon.url));
            const run = promisify(execFile)(process.execPath, [...process.execArgv.filter((flag) => !flag.startsWith("--test")), file], {
                env: { ...process.env, MSGBUS_KEY: key, NODE_OPTIONS: "--experimental-websocket" },
                timeout: TIMEOUT,
            });
            assert.equal((await run).stdout, output);
        });
    }
}
