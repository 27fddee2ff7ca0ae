// node shoot.mjs PROMETHEUS DASHBOARDS OUT FROM TO [BOARD[,VARIABLE=VALUE…]…]:
// a picture of each board in both themes.
import { build } from 'esbuild';
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import puppeteer from 'puppeteer-core';
import sharp from 'sharp';

const [prometheus, dashboards, out, from, to, ...boards] = process.argv.slice(2);
// Higher than any board: a table below the fold is not drawn.
const WIDTH = 1440, HEIGHT = 3200;

const { outputFiles } = await build({
  entryPoints: [new URL('board.tsx', import.meta.url).pathname], bundle: true, write: false, outdir: '/', format: 'esm', target: 'chrome120', minify: true,
  jsx: 'automatic', define: { 'process.env.NODE_ENV': '"production"', global: 'window', process: '{"env":{}}' },
  loader: { '.svg': 'dataurl', '.ttf': 'dataurl' }, logLevel: 'error',
});
const built = (suffix) => outputFiles.find(({ path }) => path.endsWith(suffix)).contents;

const server = createServer(async (request, response) => {
  const path = request.url.split('?')[0];
  const [type, body] = path === '/' ? ['text/html', '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/board.css"><div id="root"></div><script type="module" src="/board.js"></script>']
    : path === '/board.js' ? ['text/javascript', built('.js')]
    : path === '/board.css' ? ['text/css', built('.css')]
    : path.startsWith('/api/') ? ['application/json', await (await fetch(prometheus + request.url)).text()]
    : path.startsWith('/dashboards/') ? ['application/json', await readFile(dashboards + path.slice('/dashboards'.length))]
    : ['text/plain', ''];
  response.writeHead(body === '' ? 404 : 200, { 'Content-Type': `${type}; charset=utf-8` }).end(body);
}).listen(0, '127.0.0.1');

const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--force-color-profile=srgb', '--hide-scrollbars'] });
const faults = [];
for (const [board, ...chosen] of boards.map((b) => b.split(','))) {
  for (const theme of ['dark', 'light']) {
    const page = await browser.newPage();
    page.on('pageerror', (error) => faults.push(`${board} ${theme}: ${error.stack}`));
    page.on('console', (line) => line.type() === 'error' && !line.text().includes('404') && faults.push(`${board} ${theme}: ${line.text()}`));
    await page.setViewport({ width: WIDTH, height: HEIGHT });
    await page.goto(`http://127.0.0.1:${server.address().port}/?${new URLSearchParams({ board, theme, from, to, width: WIDTH, ...Object.fromEntries(chosen.map((c) => `var-${c}`.split('='))) })}`);
    await page.waitForFunction(() => document.title === 'drawn', { timeout: 60_000 }).catch((e) => faults.push(`${board} ${theme}: ${e.message}`));
    const height = await page.evaluate(() => Math.ceil(document.getElementById('board').getBoundingClientRect().bottom));
    const shot = await page.screenshot({ clip: { x: 0, y: 0, width: WIDTH, height } });
    await sharp(shot).png({ palette: true, colours: 256, effort: 10 }).toFile(`${out}/dashboard-${board}-${theme}.png`);
    await page.close();
  }
}
await browser.close();
server.close();
if (faults.length > 0) {
  console.error([...new Set(faults)].join('\n'));
  process.exitCode = 1;
}
