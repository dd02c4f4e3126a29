/**
 * Removes what onnxruntime-node brings for other platforms: its package holds the libraries of all of them, 288 MB, and
 * a machine loads one, 45 MB on Linux x64. Run it where the system stays on the machine that it was installed on.
 *
 *   npm run prune:platform               in this folder
 *   node scripts/prune-platform.mjs DIR  in the node_modules of another folder
 */
import { readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';

const root = process.argv[2] ?? join(import.meta.dirname, '..');
const binaries = join(root, 'node_modules', 'onnxruntime-node', 'bin');

const folders = (dir) =>
  readdirSync(dir, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => join(dir, entry.name));
const bytes = (dir) =>
  readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).size, 0);

// bin/napi-v6/PLATFORM/ARCHITECTURE
const all = folders(binaries).flatMap(folders).flatMap(folders);
const own = all.filter((dir) => dir.endsWith(join(process.platform, process.arch)));
if (own.length === 0) {
  console.error(`${binaries} has nothing for ${process.platform} ${process.arch}: nothing is removed`);
  process.exit(1);
}
let freed = 0;
for (const dir of all.filter((dir) => !own.includes(dir))) {
  freed += bytes(dir);
  rmSync(dir, { recursive: true });
}
console.log(`${Math.round(freed / 1e6)} MB of other platforms removed; kept ${own.join(', ')}`);
