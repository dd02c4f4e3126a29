/** `llavacode index`: one index run, in a process that loads the encoder and is gone afterwards. */
import ora from 'ora';
import { openBundle } from '../lib/model/bundle.ts';
import type { Config } from '../lib/process/config.ts';
import { loadContextEncoder } from '../lib/rag/encode.ts';
import { openStore } from '../lib/rag/store.ts';
import { type IndexReport, indexRepository } from './index-repository.ts';

export const INDEX_SETTINGS = [
  ...(['model', 'store', 'provider', 'threads', 'chunkLines', 'chunkStride', 'maxFileBytes'] as const),
] as const;

/** @throws ServingError; Ctrl-C stops the run and leaves the version that was served before. */
export async function runIndex(
  config: Config<(typeof INDEX_SETTINGS)[number]>,
  { repo, dir }: { readonly repo: string; readonly dir: string },
): Promise<IndexReport> {
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort(new Error(signal)));
  const spinner = ora({ text: `indexing ${dir} as ${repo}`, stream: process.stderr }).start();
  const bundle = await openBundle(config.model);
  const encoder = await loadContextEncoder(bundle, config);
  const store = await openStore(config.store);
  try {
    const report = await indexRepository({
      repo,
      dir,
      store,
      encoder,
      options: config,
      signal: stop.signal,
      onProgress: ({ files, filesRead, chunks, embedded }) => {
        spinner.text = `indexing ${repo}: ${filesRead} of ${files} files, ${chunks} chunks, ${embedded} encoded`;
      },
    });
    const { files, chunks, embedded, reused, removed, skipped, seconds, version } = report;
    const passed = Object.entries(skipped).filter(([, count]) => count > 0);
    spinner.succeed(
      `${repo}: ${chunks} chunks of ${files} files (${embedded} encoded, ${reused} kept, ${removed} removed) in ${seconds.toFixed(1)} s, version ${version}${passed.length > 0 ? `; skipped: ${passed.map(([why, count]) => `${count} ${why}`).join(', ')}` : ''}`,
    );
    return report;
  } catch (error) {
    spinner.fail();
    throw error;
  } finally {
    encoder.dispose();
    await store.close();
  }
}
