// What the page needs of Observable Plot. plot.min.js is made of this file:
//   npm install --no-save @observablehq/plot@0.6.17 esbuild@0.28.2
//   npx esbuild plot.mjs --bundle --minify --format=iife --global-name=Plot --legal-comments=none --outfile=plot.min.js
export { plot, barX, cell, dot, frame, gridX, line, link, ruleX, ruleY, text, tip, pointer, pointerX, pointerY } from "@observablehq/plot";
