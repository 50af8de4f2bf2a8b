// Keys of the server under test.
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { temporaryDirectory } from "./support.mjs";

/** The secret of a new key, and its lines of the key file. */
export function newKey(...parameters) {
    const { stdout, stderr } = spawnSync(process.env.MSGBUSD, ["key", "new", ...parameters], { encoding: "utf8" });
    return [stderr.trim(), stdout];
}

/** Returns the path of a key file. */
export function writeKeys(...entries) {
    const file = join(temporaryDirectory(), "keys.toml");
    writeFileSync(file, entries.join(""));
    return file;
}
