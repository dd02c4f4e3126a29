/**
 * Clocks of the day are set, by people and by NTP: what is timed by them breaks when that happens. Durations, deadlines
 * and leases go by `performance.now()` and timers; here stand the few places that need a date, and why.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const NEEDS_A_DATE: Record<string, string> = {
  'gateway/completion/flight-recorder.ts': 'when a request ended, for people',
  'gateway/http/chat-answer.ts': '`created` of an answer, as OpenAI has it',
  'gateway/http/completions.ts': '`created` of an answer, as OpenAI has it',
  'gateway/http/ollama.ts': '`created_at` of an answer, as Ollama has it',
  'gateway/http/models.ts': '`created` of a model, as OpenAI has it',
  'gateway/tenants/api-keys.ts': 'API keys may end on a date',
  'indexer/version-builder.ts': 'when a version was indexed, for people',
  'lib/process/otlp.ts': 'spans have dates, by which those of several processes are put side by side',
  'lib/rpc/contract.ts': 'gRPC takes deadlines as dates: made from a monotonic one at the moment of the call',
  'lib/rag/store/lmdb-store.ts':
    'locks between processes, which share no other clock; a jump ends a lock, whose holder then writes nothing more',
  'lib/process/certificate.ts': 'certificates are valid between two dates',
  'lib/process/reload.ts': 'when files were read again, as a metric that is compared with the dates of others',
  'lib/model/bundle/integrity.ts': 'the age of a file, which the file system stamps',
  'lib/kv/disk/kv-folder.ts': 'the age of a file and the order of their last use, which the file system stamps',
  'lib/engine/prepacked.ts': 'the age of a file, which the file system stamps',
};

test('the clock of the day is read where a date is needed, and nowhere else', () => {
  const root = join(PACKAGE_ROOT, 'services');
  const files = (readdirSync(root, { recursive: true }) as string[])
    .map((path) => path.replaceAll('\\', '/'))
    .filter((path) => path.endsWith('.ts') && !path.includes('/gen/'));
  const readers = files.filter((path) => /\bDate\.now\b|\bnew Date\(\)/.test(readFileSync(join(root, path), 'utf8')));
  expect(readers.sort()).toEqual(Object.keys(NEEDS_A_DATE).sort());
});
