import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, onTestFinished } from 'vitest';
import { treeSources } from '../services/indexer/sources.ts';
import { GatewayTarget } from '../services/repo-client.ts';
import { FakeCompletions } from './support/fake-completions.ts';

it('a gateway that is gone when a whole tree is sent fails the run, and nothing is left unheard', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-repo-client-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  await writeFile(join(dir, 'a.py'), 'x = 1\n');
  const gone = await FakeCompletions.start(() => {});
  await gone.stop();
  const { signal } = new AbortController();
  const nothing = () => {};
  const of = { url: gone.url, apiKey: '', repo: 'shop', signal, onSending: nothing, onProgress: nothing };
  const sources = await treeSources(dir, {});
  const run = new GatewayTarget(of).index(sources);
  await expect(run).rejects.toMatchObject({ code: 'address_unusable', message: expect.stringContaining(gone.url) });
  await new Promise((resolve) => setImmediate(resolve)); // streams report their errors a little later
});
