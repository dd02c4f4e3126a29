/**
 * Writes what other servers load, of one published shape with random weights: NAME-q4_0.gguf for llama.cpp, and the
 * Hugging Face folder NAME for vLLM. What is there already is kept.
 */
import { existsSync } from 'node:fs';
import { mkdir, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { writeCheckpoint } from '../../dist/bench/peers/checkpoint.js';
import { publishedSpec } from '../../dist/services/lib/model/checkpoint/synth.js';
import { writeGguf } from './gguf.mjs';

const { values: flags } = parseArgs({
  options: {
    llm: { type: 'string', default: 'qwen2.5-coder-0.5b' },
    to: { type: 'string', default: join(import.meta.dirname, '.cache') },
  },
});
await mkdir(flags.to, { recursive: true });
await once(join(flags.to, `${flags.llm}-q4_0.gguf`), (path) => writeGguf(path, publishedSpec(flags.llm), flags.llm));
await once(join(flags.to, flags.llm), (path) => writeCheckpoint(flags.llm, 1, path));

async function once(path, write) {
  if (existsSync(path)) return;
  process.stderr.write(`writing ${path}\n`);
  await write(`${path}.part`);
  await rename(`${path}.part`, path);
}
