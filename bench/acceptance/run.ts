/** `llavacode acceptance`: runs the suite, and prints the table of routes and cases. */
import { writeFile } from 'node:fs/promises';
import { apiKeyOf, unreachable } from '../../services/client.ts';
import { interruption } from '../../services/lib/process/interrupt.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { table } from '../report/markdown.ts';
import { ROUTES } from './cases.ts';
import type { AcceptanceOptions } from './command.ts';
import { type AcceptanceResult, KINDS, runAcceptance, type Verdict } from './suite.ts';

/**
 * Sets the exit code to 1 where a case failed.
 * @throws ServingError address_unusable where nothing answers at `url`; path_unusable.
 */
export async function runAcceptanceCommand(options: AcceptanceOptions): Promise<AcceptanceResult> {
  const url = options.url.replace(/\/+$/, '');
  const given = options.key || process.env['LLAVACODE_API_KEY'] || '';
  const key = await apiKeyOf({ apiKey: given, apiKeyFile: options.keyFile });
  const expiredKey = await apiKeyOf({ apiKey: '', apiKeyFile: options.expiredKeyFile });
  const target = { url, key, expiredKey, timeoutMs: 1_000 * options.timeout, signal: interruption() };
  let result: AcceptanceResult;
  try {
    result = await runAcceptance(target, options.readOnly);
  } catch (error) {
    target.signal.throwIfAborted();
    throw unreachable(url, error);
  }
  process.stdout.write(`${acceptanceReport(result)}\n`);
  const { json } = options;
  if (json) await atPath(`--json ${json}`, () => writeFile(json, `${JSON.stringify(result, null, 2)}\n`));
  if (result.verdicts.some(({ outcome }) => outcome === 'failed')) process.exitCode = 1;
  return result;
}

const MARKS = { passed: '✔', failed: '✘', 'not offered': '○' } as const;

/** The coverage as a table of routes and kinds of cases, then every case that did not pass, with its reason. */
export function acceptanceReport({ url, verdicts, withoutCase }: AcceptanceResult): string {
  const of = (route: string, kind: Verdict['kind']) =>
    verdicts.find((each) => each.route === route && each.kind === kind);
  const cell = (verdict: Verdict | undefined) => (verdict ? MARKS[verdict.outcome] : '');
  const rows = ROUTES.map(({ route }) => [route, ...KINDS.map((kind) => cell(of(route, kind)))]);
  const others = (outcome: Verdict['outcome']) =>
    verdicts
      .filter((verdict) => verdict.outcome === outcome)
      .map(({ route, kind, reason }) => `${MARKS[outcome]} ${route}, ${kind}: ${reason}`);
  const count = (outcome: Verdict['outcome']) => verdicts.filter((verdict) => verdict.outcome === outcome).length;
  return [
    table(['Route', ...KINDS], rows),
    '',
    ...others('not offered'),
    ...others('failed'),
    ...withoutCase.map((route) => `? ${route}: this suite has no case for it`),
    `${url}: ${ROUTES.length} routes, ${verdicts.length} cases: ${count('passed')} passed, ${count('failed')} failed, ` +
      `${count('not offered')} not offered here`,
  ].join('\n');
}
