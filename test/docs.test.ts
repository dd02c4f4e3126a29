/**
 * The documents name only things that exist: targets of links, paths in backticks, and flags; and what they send to the
 * gateway is what it takes. Generated blocks are left out.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import { acceptanceCommand, benchCommand, evaluateCommand, planCommand } from '../bench/commands.ts';
import { flagName } from '../services/lib/process/config.ts';
import { PACKAGE_ROOT } from '../services/lib/process/package-root.ts';
import { SETTINGS } from '../services/settings.ts';
import { sweepCommand, trainCommand } from '../training/command.ts';
import { datasetCommand } from '../training/dataset-command.ts';
import { type Answer, fakeGateway, spelling } from './support/fake-gateway.ts';

interface Document {
  /** Path from the repository's root. */
  readonly path: string;
  /** The text without generated blocks. */
  readonly text: string;
}

const GENERATED = /<!-- (?:\w+: [^>]*|[^>]*: begin) -->[\s\S]*?<!-- (?:end|[^>]*: end) -->/g;
/** The sample repository is somebody else's, as far as the documents are concerned. */
const LEFT_OUT = ['node_modules', 'dist', 'examples', '.git', '.cache'];

function documentsUnder(folder: string): Document[] {
  return readdirSync(join(PACKAGE_ROOT, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return LEFT_OUT.includes(entry.name) ? [] : documentsUnder(path);
    if (!entry.isFile() || !entry.name.endsWith('.md')) return [];
    return [{ path, text: readFileSync(join(PACKAGE_ROOT, path), 'utf8').replace(GENERATED, '') }];
  });
}

const DOCUMENTS = documentsUnder('.');

const FENCED = /^```[\s\S]*?^```/gm;
const LINK = /\]\(([^)\s]+)\)/g;
const CODE_SPAN = /`([^`\n]+)`/g;
const REPOSITORY_PATH = /^(?:services|test|bench|deploy|docs|protos|models|examples)\/[\w./-]*$/;
/** The last cell of a row that names tests; that they exist is checked with all other paths. */
const TEST_FILE = /^`test\/[\w./-]+\.test\.ts`(, `test\/[\w./-]+\.test\.ts`)* \|$/;
const FLAG = /(?<![\w-])--[a-z][a-z0-9-]*/g;

const all = (text: string, pattern: RegExp) => [...text.matchAll(pattern)].map((match) => match[1] ?? match[0]);

/** `path: what` for everything that `find` lists. */
const offenders = (find: (document: Document) => readonly string[]) =>
  DOCUMENTS.flatMap((document) => find(document).map((what) => `${document.path}: ${what}`));

/** The anchors that GitHub gives the headings of a document. */
function anchorsOf(text: string): string[] {
  const headings = all(text.replace(FENCED, ''), /^#+ (.+)$/gm);
  return headings.map((heading) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

function isReachable(link: string, from: string): boolean {
  const [path = '', anchor] = link.split('#');
  const target = path === '' ? join(PACKAGE_ROOT, from) : join(PACKAGE_ROOT, dirname(from), path);
  if (!existsSync(target)) return false;
  return anchor === undefined || anchorsOf(readFileSync(target, 'utf8')).includes(anchor);
}

/** Flags of other programs that the documents quote. */
const FOREIGN_FLAGS = [
  '--no-deps', // pip download
  '--omit', // npm audit
  '--no-save', // npm install
  '--ignore-scripts', // npm ci
  '--provenance', // npm publish
  '--max-model-len', // vllm serve
  '--max-num-seqs',
  '--backend', // vllm bench serve
  '--endpoint',
  '--ignore-eos',
  '--file', // docker build
  '--tag',
  '--target',
  '--build-arg',
  '--build', // docker compose up
  '--wait',
  '--rm', // docker compose run
  '--device', // docker run
  '--group-add',
  '--from-literal', // kubectl create secret
  '--from-file',
  '--help', // every command
  '--version',
];

const optionsOf = (command: Command): string[] => [
  ...command.options.map(({ long }) => long ?? ''),
  ...command.commands.flatMap(optionsOf),
];

/** Options that a file names in strings, such as those of the words in services/cli.ts. */
const quotedOptions = (path: string) =>
  all(readFileSync(join(PACKAGE_ROOT, path), 'utf8'), /['"`](--[a-z][a-z0-9-]*)/g);

/** The comparison with llama.cpp has a command line of its own, read by parseArgs. */
const peerOptions = () =>
  all(
    readFileSync(join(PACKAGE_ROOT, 'bench/peers/engine-vs-llama-cpp.mjs'), 'utf8'),
    /'?([a-z][a-z-]*)'?: \{ type:/g,
  ).map((name) => `--${name}`);

/** A request that a document shows. */
interface Shown {
  readonly url: string;
  readonly body: unknown;
}

const BLOCK = /^```(\w*)\n([\s\S]*?)^```/gm;
const WORD = /\\\n|\n|[|;&]|(?:'[^']*'|"(?:\\[\s\S]|[^"\\])*"|\\[\s\S]|[^\s'"\\|;&])+/g;
const QUOTED = /'([^']*)'|"((?:\\[\s\S]|[^"\\])*)"/g;

/** The commands of a block for a shell, as words without their quotes. Variables stay as they are written. */
function commandsIn(shell: string): string[][] {
  const commands: string[][] = [[]];
  for (const [word] of shell.matchAll(WORD)) {
    if (word === '\\\n') continue;
    if (/^[\n|;&]$/.test(word)) commands.push([]);
    else
      commands
        .at(-1)!
        .push(word.replace(QUOTED, (_, single?: string, double?: string) => single ?? double!.replace(/\\(.)/g, '$1')));
  }
  return commands.filter((words) => words.length > 0);
}

/** What the curl commands of a document send, and its bodies of completions that stand alone. */
const requestsIn = (text: string): Shown[] =>
  [...text.matchAll(BLOCK)].flatMap(([, language, block = '']) => {
    if (language === 'json') {
      const body = JSON.parse(block) as object;
      return 'prompt' in body ? [{ url: '/v1/completions', body }] : [];
    }
    if (language !== 'sh') return [];
    return commandsIn(block).flatMap((words) => {
      const [data, url] = [words.indexOf('-d'), words.find((word) => word.startsWith('http'))];
      if (words[0] !== 'curl' || data < 0 || url === undefined) return [];
      return [{ url: new URL(url).pathname, body: JSON.parse(words[data + 1]!) as unknown }];
    });
  });

describe('the documents', () => {
  it('the reader of this test finds links, paths, flags and anchors', () => {
    const text = 'See [a](x.md#b-c), `services/cli.ts --json FILE` and\n```sh\n# no heading\n```\n## B, c\n';
    expect(all(text, LINK)).toEqual(['x.md#b-c']);
    expect(all(text, CODE_SPAN)).toEqual(['services/cli.ts --json FILE']);
    expect(all(text, FLAG)).toEqual(['--json']);
    expect(anchorsOf(text)).toEqual(['b-c']);
    const generated =
      'a <!-- x: y --> b <!-- end --> c <!-- generated by z: begin --> d <!-- generated by z: end --> e';
    expect(generated.replace(GENERATED, '')).toBe('a  c  e');
  });

  it('every relative link leads to a file, and its anchor to a heading', () => {
    const broken = offenders(({ path, text }) =>
      all(text.replace(FENCED, ''), LINK).filter((link) => !/^https?:/.test(link) && !isReachable(link, path)),
    );
    expect(broken).toEqual([]);
  });

  it('every path in backticks exists', () => {
    const missing = offenders(({ text }) =>
      all(text.replace(FENCED, ''), CODE_SPAN)
        .flatMap((span) => span.split(/\s+/))
        .filter((word) => REPOSITORY_PATH.test(word) && !word.startsWith('bench/results/'))
        .filter((word) => !existsSync(join(PACKAGE_ROOT, word))),
    );
    expect(missing).toEqual([]);
  });

  it('every promise of SECURITY.md names a test that holds it', () => {
    const threats = DOCUMENTS.find(({ path }) => path === 'deploy/SECURITY.md')!.text.split('\n## ')[3]!;
    const [table = '', ...sections] = threats.split('\n### ');
    const rows = table.split('\n').filter((line) => /^\| (?!Threat \|)/.test(line));
    expect(rows.length).toBeGreaterThan(10);
    expect(sections.length).toBeGreaterThan(4);
    expect(rows.filter((row) => !TEST_FILE.test(row.split(' | ').at(-1)!))).toEqual([]);
    const silent = sections.filter((section) => !/^Held by `test\//m.test(section));
    expect(silent.map((section) => section.split('\n')[0])).toEqual([]);
  });

  it('every flag is a setting or an option of the command line', () => {
    const known = new Set([
      ...Object.keys(SETTINGS).map(flagName),
      ...quotedOptions('services/cli.ts'),
      ...[
        acceptanceCommand(),
        benchCommand(),
        planCommand(),
        evaluateCommand(),
        datasetCommand(),
        trainCommand(),
        sweepCommand(),
      ].flatMap(optionsOf),
      ...peerOptions(),
      ...FOREIGN_FLAGS,
    ]);
    expect(offenders(({ text }) => all(text, FLAG).filter((flag) => !known.has(flag)))).toEqual([]);
  });

  it('the reader of this test finds what curl sends', () => {
    const text = [
      '```sh',
      `cd x && curl -s http://127.0.0.1/v1/a -H "x: \\"$KEY\\"" \\`,
      `  -d '{"prompt":"a\\n|b",\n"n":1}' | jq .`,
      'curl http://127.0.0.1/livez',
      '```',
      '```json',
      '{ "prompt": "c" }',
      '```',
    ];
    expect(requestsIn(text.join('\n'))).toEqual([
      { url: '/v1/a', body: { prompt: 'a\n|b', n: 1 } },
      { url: '/v1/completions', body: { prompt: 'c' } },
    ]);
  });

  it('every body that the documents send is one that its route takes', async () => {
    const shown = DOCUMENTS.flatMap(({ path, text }) => requestsIn(text).map((request) => ({ path, ...request })));
    const pages = new Set(shown.map(({ path }) => path));
    expect([...pages]).toEqual(expect.arrayContaining(['README.md', 'deploy/KUBERNETES.md', 'docs/speculation.md']));
    const { app } = await fakeGateway({ token: spelling('ab'), capacity: 4_096 });
    const refused: string[] = [];
    for (const { path, url, body } of shown) {
      const answer = await app.inject({ method: 'POST', url, payload: body as object });
      // No repository is indexed here; that it is asked for is right.
      const isTaken = answer.statusCode === 200 || answer.json<Answer>().error?.code === 'repo_not_found';
      if (!isTaken) refused.push(`${path}: ${url}: ${answer.body}`);
    }
    expect(refused).toEqual([]);
  });
});
