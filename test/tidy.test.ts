/**
 * The house rules that a compiler does not know. Every rule looks at all files and lists every offender. Imports are
 * read with regular expressions: TypeScript 7 has no stable API in JavaScript, and the formatter keeps imports uniform.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { describe, expect, it } from 'vitest';
import { PACKAGE_ROOT } from '../services/lib/process/package-root.ts';

/** Rooms in the order that imports go: a room imports those on earlier lines, and no other on its own line. */
const ROOMS = [
  ['process', 'numeric'],
  ['request', 'async'],
  ['text', 'model', 'kv'],
  ['rpc', 'engine', 'redis'],
  ['rag', 'worker'],
  ['gateway', 'prefill', 'decode', 'indexer', 'lsp'],
  ['colocated'], // mounts what prefill and decode export
  ['cli'], // starts every service
  ['training', 'page'], // the operator page knows the answers of the gateway, and the sample
  ['bench'], // measures training too, and scores completions with its metrics
  ['command'], // services/cli.ts alone: its words start services, benches and training
  ['test'],
];
/** The services that each service may import. */
const SERVICE_IMPORTS: Record<string, readonly string[]> = {
  colocated: ['prefill', 'decode'],
  cli: ['gateway', 'prefill', 'decode', 'indexer', 'lsp', 'colocated'],
};
const SERVICES = ['gateway', 'prefill', 'decode', 'indexer', 'lsp', 'colocated', 'cli'];

/** Packages that a single place knows: the rest of the house could do with another one. */
const ONE_IMPORTER: Record<string, RegExp> = {
  '@grpc/grpc-js': /^services\/lib\/rpc\//,
  '@grpc/proto-loader': /^services\/lib\/rpc\//,
  '@grpc/reflection': /^services\/lib\/rpc\//,
  'grpc-health-check': /^services\/lib\/rpc\//,
  koffi: /^services\/lib\/engine\/(ort[\w-]*|vulkan)\.ts$/,
  'onnxruntime-node': /^services\/lib\/engine\/ort[\w-]*\.ts$/,
  'prom-client': /^services\/lib\/process\/metrics\.ts$/,
  '@opentelemetry/api': /^services\/lib\/process\/otlp\.ts$/,
  '@opentelemetry/core': /^services\/lib\/process\/otlp\.ts$/,
  '@opentelemetry/exporter-trace-otlp-http': /^services\/lib\/process\/otlp\.ts$/,
  '@opentelemetry/exporter-trace-otlp-proto': /^services\/lib\/process\/otlp\.ts$/,
  '@opentelemetry/resources': /^services\/lib\/process\/otlp\.ts$/,
  '@opentelemetry/sdk-trace': /^services\/lib\/process\/otlp\.ts$/,
  ora: /^services\/lib\/process\/progress\.ts$/,
  pino: /^services\/lib\/process\/log\.ts$/,
  ioredis: /^services\/lib\/redis\/connection\.ts$/,
  hyparquet: /^training\/dataset\/stack\.ts$/,
  'hyparquet-compressors': /^training\/dataset\/stack\.ts$/,
  lmdb: /^services\/lib\/rag\/store\/lmdb-store\.ts$/,
  // The page is built into files of its own: nothing that a service runs needs these.
  preact: /^page\//,
  uplot: /^page\/chart\.tsx$/,
  vite: /^page\/vite\.config\.ts$/,
  fastify: /^services\/gateway\/http\//,
  protobufjs: /^services\/lib\/model\/graph\/onnx\.ts$/,
  'vscode-languageserver': /^services\/lsp\/server\.ts$/,
  '@vscode/tree-sitter-wasm': /^services\/lib\/rag\/encode\/grammars\.ts$/,
  '@huggingface/jinja': /^services\/lib\/text\/chat-template\.ts$/,
  '@huggingface/tokenizers': /^services\/lib\/text\/tokenizer\.ts$/,
};

/** Files that are started, not imported. */
const ENTRY_POINTS = [
  'services/cli.ts',
  'services/gateway/main.ts',
  'services/prefill/main.ts',
  'services/decode/main.ts',
  'services/colocated/main.ts',
  'services/indexer/main.ts',
];
const MAX_COLUMNS = 120;

interface Source {
  /** From the repository's root, with slashes. */
  readonly path: string;
  readonly text: string;
  /** The text without comments; line numbers as in the file. */
  readonly code: string;
  readonly imports: readonly string[];
}

function filesUnder(folder: string, name: RegExp): string[] {
  const found: string[] = [];
  for (const entry of readdirSync(join(PACKAGE_ROOT, folder), { withFileTypes: true })) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory() && entry.name !== 'node_modules') found.push(...filesUnder(path, name));
    else if (entry.isFile() && name.test(entry.name)) found.push(path);
  }
  return found.sort();
}

/** Strings and regular expressions are matched first, so that a `//` within one is not taken for a comment. */
const STRING = /'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`/.source;
const REGEXP = /(?<=[(,=:[!&|?{};]\s*)\/(?![/*])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/[\\\n])+\//.source;
const COMMENT = /\/\/[^\n]*|\/\*[\s\S]*?\*\//.source;
const STRING_OR_COMMENT = new RegExp(`(${STRING}|${REGEXP})|${COMMENT}`, 'g');
const withoutComments = (text: string) =>
  text.replace(STRING_OR_COMMENT, (match, string?: string) => string ?? match.replace(/[^\n]/g, ' '));
const withoutStrings = (code: string) =>
  code.replace(STRING_OR_COMMENT, (match, string?: string) => (string ? `''${string.replace(/[^\n]/g, '')}` : match));
const withoutTemplates = (code: string) =>
  code.replace(STRING_OR_COMMENT, (match) => (match.startsWith('`') ? match.replace(/[^\n]/g, '') : match));

const STATIC_IMPORT = /^\s*(?:import|export)\s(?:[^'"`;]*?\sfrom\s+)?['"]([^'"\n]+)['"]/gm;
const DYNAMIC_IMPORT = /\bimport\(\s*['"]([^'"\n]+)['"]|\brequire(?:\.resolve)?\(\s*['"]([^'"\n]+)['"]/g;

function importsOf(code: string): string[] {
  const plain = withoutTemplates(code);
  return [...plain.matchAll(STATIC_IMPORT), ...plain.matchAll(DYNAMIC_IMPORT)].map((match) => (match[1] ?? match[2])!);
}

function read(path: string): Source {
  const text = readFileSync(join(PACKAGE_ROOT, path), 'utf8');
  const code = withoutComments(text);
  return { path, text, code, imports: importsOf(code) };
}

const isGenerated = (path: string) => path.startsWith('services/lib/rpc/gen/');
const SOURCES = ['services', 'bench', 'training', 'page', 'test']
  .flatMap((folder) => filesUnder(folder, /\.tsx?$/))
  .map(read);
const WRITTEN = SOURCES.filter(({ path }) => !isGenerated(path));
const PRODUCT = WRITTEN.filter(({ path }) => !path.startsWith('test/'));
const PATHS = new Set(SOURCES.map(({ path }) => path));

/** Path of a relative import from the root; undefined for packages. */
function target(source: Source, specifier: string): string | undefined {
  if (!specifier.startsWith('.')) return undefined;
  return relative(PACKAGE_ROOT, resolve(PACKAGE_ROOT, dirname(source.path), specifier)).replaceAll(sep, '/');
}

const packageName = (specifier: string) => /^(@[^/]+\/[^/]+|[^/]+)/.exec(specifier)![1]!;

/**
 * `services/lib/kv/pool.ts` is in kv, `services/decode/loop.ts` in decode, `services/*.ts` in cli, `bench/…` in bench,
 * `training/…` in training, `page/…` in page.
 */
function room(path: string): string {
  const [top, second, third] = path.split('/');
  if (top !== 'services') return top!;
  if (path === 'services/cli.ts') return 'command';
  if (second === 'lib') return third!;
  return second!.endsWith('.ts') ? 'cli' : second!;
}
const level = (name: string) => ROOMS.findIndex((rooms) => rooms.includes(name));

function mayImport(from: string, to: string): boolean {
  if (from === to) return true;
  if (level(from) <= level(to)) return false;
  return SERVICES.includes(from) && SERVICES.includes(to) ? (SERVICE_IMPORTS[from]?.includes(to) ?? false) : true;
}

/**
 * Rooms within rooms: in each table a room imports those on later lines, and no other on its own line. A file that lies
 * beside the rooms is a room of its own: it puts them together, or is the ground that they share.
 */
const INNER_ROOMS: Readonly<Record<string, readonly (readonly string[])[]>> = {
  'services/gateway/': [
    ['main'],
    ['service'],
    ['compose'],
    ['served-model'],
    ['candidates'],
    ['arm'],
    ['settings'],
    ['http', 'readiness'],
    ['rollout'],
    ['completion'],
    ['admission', 'context'],
    ['workers', 'tenants'],
    ['request'],
  ],
  'services/lib/rag/': [['search'], ['encode'], ['store'], ['settings'], ['chunk', 'retriever-name']],
  'services/lib/model/': [['bundle'], ['graph'], ['checkpoint']],
  'bench/': [
    ['commands'],
    ['all'],
    ['readme'],
    ['reports'],
    // They measure beside what `drills`, `engine`, `load` and `tables` measure.
    ['breakdown', 'dashboards', 'gpu', 'plan', 'training'],
    [
      'acceptance',
      'drills',
      'engine',
      'fairness',
      'indexing',
      'interference',
      'load',
      'observability',
      'peers',
      'quality',
      'retrieval',
      'speculation',
      'start',
      'tables',
      'typing',
    ],
    ['harness', 'hostile'],
    ['system'],
    ['options'],
    ['report'],
    ['measure'],
  ],
  'training/': [
    ['command', 'dataset-command'],
    ['ablate', 'dataset', 'sweep'],
    ['run'],
    ['report', 'evaluate', 'pretrain'],
    ['data'],
    ['step'],
    ['metrics'],
    ['choices'],
  ],
};

/** `services/gateway/http/sse.ts` is in http of `services/gateway/`, `bench/readme.ts` in readme of `bench/`. */
function innerRoom(path: string): { readonly house: string; readonly room: string } | undefined {
  const house = Object.keys(INNER_ROOMS).find((prefix) => path.startsWith(prefix));
  if (house === undefined) return undefined;
  return { house, room: path.slice(house.length).split('/')[0]!.replace(/\.ts$/, '') };
}

function mayImportWithin(path: string, other: string): boolean {
  const [from, to] = [innerRoom(path), innerRoom(other)];
  if (from === undefined || to === undefined || from.house !== to.house || from.room === to.room) return true;
  const floor = (name: string) => INNER_ROOMS[from.house]!.findIndex((rooms) => rooms.includes(name));
  return floor(from.room) >= 0 && floor(from.room) < floor(to.room);
}

/** The files that are loaded with a file: its imports, and theirs, except for dynamic ones and types. */
function loadedWith(path: string, found = new Set<string>()): ReadonlySet<string> {
  const source = SOURCES.find((source) => source.path === path);
  if (source === undefined || found.has(path)) return found;
  found.add(path);
  const statements = withoutTemplates(source.code).matchAll(STATIC_IMPORT);
  for (const [statement, specifier] of statements) {
    const next = /^\s*(?:import|export)\s+type\b/.test(statement) ? undefined : target(source, specifier!);
    if (next !== undefined) loadedWith(next, found);
  }
  return found;
}

/** The code behind the command line: services and their library. */
const SERVICES_ALONE = PRODUCT.filter(
  ({ path }) => path.startsWith('services/') && !['cli', 'command'].includes(room(path)),
);

/** `path:line: the line` wherever the pattern is found. */
function matches(sources: readonly Source[], pattern: RegExp, view: (source: Source) => string): string[] {
  return sources.flatMap((source) => {
    const written = source.text.split('\n');
    return view(source)
      .split('\n')
      .flatMap((line, i) => (pattern.test(line) ? [`${source.path}:${i + 1}: ${written[i]?.trim()}`] : []));
  });
}

/** An import cycle among the files, as the chain of its files; undefined where there is none. */
function cycle(): string[] | undefined {
  const edges = new Map(
    SOURCES.map((source) => [source.path, source.imports.flatMap((specifier) => target(source, specifier) ?? [])]),
  );
  const done = new Set<string>();
  const visit = (path: string, chain: readonly string[]): string[] | undefined => {
    if (chain.includes(path)) return [...chain.slice(chain.indexOf(path)), path];
    if (done.has(path)) return undefined;
    for (const next of edges.get(path) ?? []) {
      const found = visit(next, [...chain, path]);
      if (found) return found;
    }
    done.add(path);
    return undefined;
  };
  for (const path of edges.keys()) {
    const found = visit(path, []);
    if (found) return found;
  }
  return undefined;
}

describe('the reader of this test', () => {
  it('the reader of this test finds all kinds of imports, and none in comments and strings', () => {
    const text = `
      import a, { type B } from 'a';
      import type {
        C, // from 'not-this'
      } from './c.ts';
      import 'd';
      export * from "./e.ts";
      export { f } from './f.ts';
      // import g from 'g';
      /* import h from 'h'; */
      const url = 'http://host'; const i = await import('./i.ts');
      const text = "it's"; const j = require.resolve('j/package.json');
      if (/^http:\\/\\//.test(url) && /['/*]/.test(url)) await import('./k.ts');
      export const from = 'l';
    `;
    expect(importsOf(withoutComments(text)).sort()).toEqual(
      ['a', './c.ts', 'd', './e.ts', './f.ts', './i.ts', 'j/package.json', './k.ts'].sort(),
    );
  });

  it('taking comments and strings out of a text keeps its line numbers', () => {
    const text = 'a /* b\n c */ `d\n// e` // f\n';
    expect(withoutComments(text)).toBe('a     \n      `d\n// e`     \n');
    expect(withoutStrings(withoutComments(text)).split('\n')).toHaveLength(text.split('\n').length);
  });

  it('the table of rooms says who may import whom', () => {
    const rooms = (path: string, other: string) => mayImport(room(path), room(other));
    expect(rooms('services/decode/loop.ts', 'services/lib/kv/pool.ts')).toBe(true);
    expect(rooms('services/lib/kv/pool.ts', 'services/decode/loop.ts')).toBe(false);
    expect(rooms('services/lib/text/a.ts', 'services/lib/model/b.ts')).toBe(false);
    expect(rooms('services/decode/a.ts', 'services/prefill/b.ts')).toBe(false);
    expect(rooms('services/colocated/a.ts', 'services/prefill/b.ts')).toBe(true);
    expect(rooms('services/colocated/a.ts', 'services/gateway/b.ts')).toBe(false);
    expect(rooms('services/cli.ts', 'services/gateway/main.ts')).toBe(true);
    expect(rooms('bench/a.ts', 'services/gateway/b.ts')).toBe(true);
    expect(rooms('services/gateway/a.ts', 'bench/b.ts')).toBe(false);
    expect(rooms('services/up.ts', 'bench/b.ts')).toBe(false);
    expect(rooms('training/a.ts', 'services/gateway/b.ts')).toBe(true);
    expect(rooms('training/a.ts', 'bench/b.ts')).toBe(false);
    expect(rooms('bench/a.ts', 'training/b.ts')).toBe(true);
    expect(rooms('services/up.ts', 'training/b.ts')).toBe(false);
    expect(rooms('services/cli.ts', 'training/b.ts')).toBe(true);
    expect(rooms('services/cli.ts', 'bench/b.ts')).toBe(true);
  });
});

describe('house rules', () => {
  it('every file lies in a room that the house knows', () => {
    expect(SOURCES.map(({ path }) => path).filter((path) => level(room(path)) < 0)).toEqual([]);
  });

  it('imports go one way between rooms', () => {
    const offenders = SOURCES.flatMap((source) =>
      source.imports.flatMap((specifier) => {
        const path = target(source, specifier);
        if (path === undefined || mayImport(room(source.path), room(path))) return [];
        return [`${source.path} (${room(source.path)}) imports ${path} (${room(path)})`];
      }),
    );
    expect(offenders).toEqual([]);
  });

  it('every relative import names a file, with its extension', () => {
    const offenders = WRITTEN.flatMap((source) =>
      source.imports.flatMap((specifier) => {
        const path = target(source, specifier);
        return path === undefined || PATHS.has(path) ? [] : [`${source.path} imports ${specifier}`];
      }),
    );
    expect(offenders).toEqual([]);
  });

  it('a package that one place owns is imported there alone', () => {
    const offenders = PRODUCT.flatMap((source) =>
      source.imports
        .filter((specifier) => !(ONE_IMPORTER[packageName(specifier)]?.test(source.path) ?? true))
        .map((specifier) => `${source.path} imports ${specifier}`),
    );
    expect(offenders).toEqual([]);
  });

  it('within the gateway only http knows HTTP and the spelling of the wire', () => {
    const inside = PRODUCT.filter(({ path }) => /^services\/gateway\/(?!http\/)/.test(path));
    const imports = inside.flatMap(({ path, imports }) =>
      imports.filter((name) => /^(fastify|node:https?)$/.test(name)).map((name) => `${path} imports ${name}`),
    );
    const wire =
      /prompt_tokens|completion_tokens|cached_tokens|token_logprobs|top_logprobs|text_offset|start_line|end_line|index_version/;
    // The log line of a completion is spelled as its answer is.
    const forLog = /^function spelledForLog\([\s\S]*?^}/m;
    const spelled = matches(inside, wire, ({ path, code }) =>
      path === 'services/gateway/completion/request-record.ts'
        ? code.replace(forLog, (text) => text.replace(/[^\n]/g, ''))
        : code,
    );
    expect([...imports, ...spelled]).toEqual([]);
  });

  it('imports go in no circle', () => {
    expect(cycle()).toBeUndefined();
  });

  it(`a comment is at most ${MAX_COLUMNS} columns wide: the formatter wraps code, and comments are wrapped by hand`, () => {
    const wide = WRITTEN.flatMap(({ path, text, code }) => {
      const lines = code.split('\n');
      return text.split('\n').flatMap((line, i) => {
        return line.length > MAX_COLUMNS && line !== lines[i] ? [`${path}:${i + 1}: ${line.length} columns`] : [];
      });
    });
    expect(wide).toEqual([]);
  });

  it.each(Object.keys(INNER_ROOMS))('within %s imports go one way between its rooms', (house) => {
    const offenders = PRODUCT.filter(({ path }) => path.startsWith(house)).flatMap((source) =>
      source.imports.flatMap((specifier) => {
        const path = target(source, specifier);
        return path === undefined || mayImportWithin(source.path, path) ? [] : [`${source.path} imports ${path}`];
      }),
    );
    expect(offenders).toEqual([]);
    const rooms = PRODUCT.flatMap(({ path }) => innerRoom(path) ?? []).filter((inner) => inner.house === house);
    const known = INNER_ROOMS[house]!.flat();
    expect([...new Set(rooms.map(({ room }) => room))].sort()).toEqual(known.toSorted());
  });

  it('an import names its file as plain text, so that these rules can read it', () => {
    expect(matches(PRODUCT, /\bimport\(\s*(?!['"])/, ({ code }) => code)).toEqual([]);
  });

  it('the command line loads the code of a word when that word is given', () => {
    const light = /^services\/(cli\.ts|lib\/process\/)/;
    expect([...loadedWith('services/cli.ts')].filter((path) => !light.test(path))).toEqual([]);
  });

  it.each(['prefill', 'decode', 'indexer', 'gateway'])('a process of %s loads the code of no other service', (role) => {
    const others = SERVICES.filter((service) => service !== role);
    const loaded = [...loadedWith(`services/${role}/main.ts`)];
    expect(loaded.filter((path) => others.includes(path.split('/')[1]!))).toEqual([]);
  });

  it('the bench commands load no code that measures, draws or starts systems', () => {
    const loaded = [...loadedWith('bench/commands.ts')].filter((path) => path.startsWith('bench/'));
    const light = /^bench\/(commands|options|[\w-]+\/command|measure\/\w+|system\/(cores|context))\.ts$/;
    expect(loaded.filter((path) => !light.test(path))).toEqual([]);
    expect(
      [...loadedWith('bench/commands.ts')].filter((path) => /services\/(?!lib\/|gateway\/request\.ts$)/.test(path)),
    ).toEqual([]);
  });

  it('the help of training loads no code that trains', () => {
    const loaded = ['command', 'dataset-command'].flatMap((name) => [...loadedWith(`training/${name}.ts`)]);
    const light =
      /^(training\/(command|dataset-command|choices)|services\/lib\/(process\/[\w-]+|model\/bundle\/choices))\.ts$/;
    expect(loaded.filter((path) => !light.test(path))).toEqual([]);
  });

  it('no bench uses the global fetch, which may follow a proxy', () => {
    const benches = PRODUCT.filter(({ path }) => path.startsWith('bench/'));
    expect(matches(benches, /(?<![.\w])fetch\(/, ({ code }) => withoutStrings(code))).toEqual([]);
  });

  it('every file of a service is imported by the product, or is an entry point', () => {
    const imported = new Set(
      SOURCES.filter(({ path }) => !path.startsWith('test/')).flatMap((source) =>
        source.imports.flatMap((specifier) => target(source, specifier) ?? []),
      ),
    );
    const orphans = WRITTEN.map(({ path }) => path).filter(
      (path) => path.startsWith('services/') && !imported.has(path) && !ENTRY_POINTS.includes(path),
    );
    expect(orphans).toEqual([]);
  });

  it('every entry point exists', () => {
    expect(ENTRY_POINTS.filter((path) => !PATHS.has(path))).toEqual([]);
  });

  it('no folder or file is a drawer for odds and ends', () => {
    expect(SOURCES.map(({ path }) => path).filter((path) => /\/(utils?|common|helpers?)(\/|\.ts$)/.test(path))).toEqual(
      [],
    );
  });

  it('the environment is read by the command line alone', () => {
    const uses = matches(SERVICES_ALONE, /\bprocess\s*\.\s*env\b|\bprocess\['env'\]/, ({ code }) =>
      withoutStrings(code),
    );
    // ONNX Runtime takes this from the environment alone; nothing of ours reads it.
    const write = /^services\/lib\/engine\/ort-api\.ts:\d+: process\.env\['ORT_DISABLE_TELEMETRY'\] = '1';$/;
    expect(uses.filter((use) => !write.test(use))).toEqual([]);
  });

  it('services write logs; only the command line uses the console', () => {
    expect(matches(SERVICES_ALONE, /\bconsole\s*\./, ({ code }) => withoutStrings(code))).toEqual([]);
  });

  it('nothing is typed any', () => {
    const typedAny = /(?::|<|\bas|\bextends|[|&,=])\s*any\b(?!\s*[:(])|\bany\[\]/;
    expect(matches(WRITTEN, typedAny, ({ code }) => withoutStrings(code))).toEqual([]);
  });

  it('no file knows a path of the machine that it was written on', () => {
    const documents = [
      ...['deploy', 'docs', 'protos'].flatMap((folder) => filesUnder(folder, /./)),
      ...readdirSync(PACKAGE_ROOT, { withFileTypes: true })
        .filter((entry) => entry.isFile() && /\.(md|json|ya?ml|ts)$/.test(entry.name))
        .map((entry) => entry.name),
    ].map(read);
    const machinePath = /(?<![\w.\-/}])\/(?:home|root|work|Users|tmp)\/\w/;
    expect(matches([...WRITTEN, ...documents], machinePath, ({ text }) => text)).toEqual([]);
  });
});
