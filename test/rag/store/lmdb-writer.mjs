// A process that indexes into an LMDB store. Arguments: DIR REPO VERSION MODE.
// `publish` completes a version; `hang` writes rows, prints a line, and never publishes.
import { killIfExitHangs } from '../../../dist/services/lib/process/exit.js';
import { openStore } from '../../../dist/services/lib/rag/store/open-store.js';
import { packIds } from '../../../dist/services/lib/rag/store/row.js';
import { chunkFile } from '../../../dist/services/lib/rag/chunk.js';

killIfExitHangs(1_000); // as in the command line: the library may hang in an exit after a failed commit

const [dir, repo, version, mode] = process.argv.slice(2);
const text = Array.from({ length: 20_000 }, (_, i) => `v${version}_${i} = ${i}`).join('\n');
const chunks = chunkFile(`v${version}.py`, text, { chunkLines: 10, chunkStride: 5 });
const store = await openStore(`lmdb:${dir}`);
// A dead holder's lock should run out soon. While a test tries to take it, a busy machine must be able to renew it.
const writer = await store.lock(repo, mode === 'hang' ? 3_000 : 300);
const vector = new Float32Array(1536).fill(0.5);
for (let at = 0; at < chunks.length; at += 500) {
  await writer.put('f', chunks.slice(at, at + 500).map((chunk) => ({ chunk, vector })));
}
if (mode === 'hang') {
  process.stdout.write('written\n');
  setInterval(() => {}, 1_000);
} else {
  const head = {
    version: version.repeat(16),
    fingerprint: 'f',
    hidden: vector.length,
    files: 1,
    chunks: chunks.length,
    indexedAt: new Date().toISOString(),
  };
  await writer.publish({ head, ids: packIds(chunks.map((chunk) => chunk.id)) });
  await writer.sweep();
  await writer.release();
  await store.close();
}
